// The list of clients: who is told of, what is summed, and that looking disturbs nobody. That the
// server's own clients are in it is tests/stat_command.py's.

#include "forebay/serve/client_list.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "forebay/os/fd_passing.h"

namespace forebay {
namespace {

const std::string disk = "disk";

client_reports told_of(const client_list& list) {
  client_reports all;
  list.report(all, disk);
  return all;
}

TEST(ClientList, TellsWhoIsThereAndWhatHeHasDone) {
  client_list list;
  const socket_pair p = *make_socket_pair();
  client_entry c;
  EXPECT_EQ(told_of(list).count, 0u);
  c.enter(list, client_door::vhost_user, p.first.get());
  c.count(nbd::command::read, 4096);
  c.count(nbd::command::write, 512);
  c.count(nbd::command::trim, 1u << 30);
  c.count_all(2, 0, 100);
  c.began();
  c.began();
  c.ended();
  const client_reports all = told_of(list);
  ASSERT_EQ(all.count, 1u);
  const client_report& r = all.first.front();
  EXPECT_EQ(r.peer.data(),
            "pid " + std::to_string(::getpid()) + ", uid " + std::to_string(::getuid()));
  EXPECT_EQ(r.exported, &disk);
  EXPECT_EQ(r.door, client_door::vhost_user);
  EXPECT_EQ(r.requests, 5u);
  EXPECT_EQ(r.read_bytes, 4096u);
  EXPECT_EQ(r.written_bytes, 612u);
  EXPECT_EQ(r.in_flight, 1u);
  // The next one that has its place is another.
  c.leave();
  EXPECT_EQ(told_of(list).count, 0u);
  c.enter(list, client_door::nbd, p.first.get());
  const client_reports next = told_of(list);
  ASSERT_EQ(next.count, 1u);
  EXPECT_NE(next.first.front().id, r.id);
  EXPECT_EQ(next.first.front().requests + next.first.front().in_flight, 0u);
}

TEST(ClientList, KeepsTheMostActiveInOrderAndSumsTheOthers) {
  client_reports all;
  constexpr std::uint64_t clients = 100;
  std::uint64_t read = 0;
  for (std::uint64_t i = 0; i < clients; ++i) {
    client_report r;
    r.id = i * 37 % clients;  // in no order
    r.requests = r.id;
    r.read_bytes = r.id * 8192;
    read += r.read_bytes;
    all.add(r);
  }
  ASSERT_EQ(all.count, client_reports::most);
  EXPECT_EQ(all.others, clients - all.count);
  std::uint64_t told = all.sum.read_bytes;
  for (std::size_t i = 0; i < all.count; ++i) {
    EXPECT_EQ(all.first[i].id, clients - 1 - i);
    told += all.first[i].read_bytes;
  }
  EXPECT_EQ(told, read);
}

TEST(ClientList, ClientsComeAndGoWhileTheyAreLookedAt) {
  client_list list;
  const socket_pair p = *make_socket_pair();
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 300; ++n) {
        client_entry c;
        c.enter(list, client_door::nbd, p.first.get());
        c.began();
        c.count(nbd::command::read, 1);
        c.ended();
      }
    });
  }
  for (int n = 0; n < 300; ++n) {
    const client_reports all = told_of(list);
    ASSERT_LE(all.count, 3u);
    for (std::size_t i = 0; i < all.count; ++i) EXPECT_LE(all.first[i].requests, 1u);
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(told_of(list).count, 0u);
}

}  // namespace
}  // namespace forebay
