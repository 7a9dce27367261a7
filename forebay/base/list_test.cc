// One thread: not in the thread sanitizer's tree.

#include "forebay/base/list.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <list>
#include <vector>

namespace forebay {
namespace {

struct item {
  int before = 1;  // so that neither node lies at offset 0
  list_node link;
  int number = 0;
  list_node other_link;
};

using item_list = intrusive_list<item, &item::link>;
using other_list = intrusive_list<item, &item::other_link>;

static_assert(std::bidirectional_iterator<item_list::iterator>);

std::vector<item*> contents(item_list& list) {
  std::vector<item*> found;
  for (item& i : list) found.push_back(&i);
  return found;
}

std::vector<item*> contents_backwards(item_list& list) {
  std::vector<item*> found;
  for (auto at = list.end(); at != list.begin();) found.push_back(&*--at);
  std::reverse(found.begin(), found.end());
  return found;
}

// Random operations on two lists that share their items, beside two std::list of pointers.
RC_GTEST_PROP(List, BehavesAsStdList, ()) {
  constexpr std::size_t count = 8;
  std::array<item, count> items;
  std::array<item_list, 2> lists;
  std::array<std::list<item*>, 2> model;
  const auto place_of = [&](item* i) {
    for (std::size_t l = 0; l < model.size(); ++l) {
      const auto at = std::find(model[l].begin(), model[l].end(), i);
      if (at != model[l].end()) return std::pair(static_cast<int>(l), at);
    }
    return std::pair(-1, model[0].end());
  };

  const auto steps = *rc::gen::container<std::vector<std::array<unsigned, 3>>>(
      rc::gen::container<std::array<unsigned, 3>>(rc::gen::inRange(0u, 1000u)));
  for (const auto& [what, which, who] : steps) {
    item& i = items[who % count];
    const std::size_t l = which % 2;
    const auto [on, at] = place_of(&i);
    switch (what % 8) {
      case 0:
        if (on < 0) lists[l].push_front(i), model[l].push_front(&i);
        break;
      case 1:
        if (on < 0) lists[l].push_back(i), model[l].push_back(&i);
        break;
      case 2: {
        item* const expected = model[l].empty() ? nullptr : model[l].front();
        RC_ASSERT(lists[l].pop_front() == expected);
        if (expected != nullptr) model[l].pop_front();
        break;
      }
      case 3: {
        item* const expected = model[l].empty() ? nullptr : model[l].back();
        RC_ASSERT(lists[l].pop_back() == expected);
        if (expected != nullptr) model[l].pop_back();
        break;
      }
      case 4:
        item_list::erase(i);  // on either list or none
        if (on >= 0) model[static_cast<std::size_t>(on)].erase(at);
        break;
      case 5:
        i.link.unlink();
        if (on >= 0) model[static_cast<std::size_t>(on)].erase(at);
        break;
      case 6: {  // behind the item that is next in number
        item& anchor = items[(who + 1) % count];
        const auto [anchor_on, anchor_at] = place_of(&anchor);
        if (on < 0 && anchor_on >= 0 && &anchor != &i) {
          item_list::insert_after(anchor, i);
          model[static_cast<std::size_t>(anchor_on)].insert(std::next(anchor_at), &i);
        }
        break;
      }
      case 7:
        if (who % 16 == 0) lists[l].clear(), model[l].clear();
        break;
    }
    for (std::size_t k = 0; k < lists.size(); ++k) {
      const std::vector<item*> expected(model[k].begin(), model[k].end());
      RC_ASSERT(contents(lists[k]) == expected);
      RC_ASSERT(contents_backwards(lists[k]) == expected);
      RC_ASSERT(lists[k].empty() == expected.empty());
      if (!expected.empty()) {
        RC_ASSERT(&lists[k].front() == expected.front());
        RC_ASSERT(&lists[k].back() == expected.back());
      }
    }
    for (item& each : items) RC_ASSERT(each.link.linked() == (place_of(&each).first >= 0));
  }
}

TEST(List, AnItemCanBeOnTwoListsThroughTwoNodes) {
  item a;
  item b;
  item_list first;
  other_list second;
  first.push_back(a);
  first.push_back(b);
  second.push_back(b);
  second.push_back(a);
  EXPECT_EQ(&first.front(), &a);
  EXPECT_EQ(&second.front(), &b);
  item_list::erase(a);
  EXPECT_FALSE(a.link.linked());
  EXPECT_TRUE(a.other_link.linked());
  EXPECT_EQ(second.pop_back(), &a);
}

TEST(List, UnlinkOfANodeOnNoListDoesNothing) {
  item a;
  a.link.unlink();
  a.link.unlink();
  EXPECT_FALSE(a.link.linked());
  EXPECT_EQ(a.link.next(), &a.link);
  EXPECT_EQ(a.link.prev(), &a.link);
}

TEST(List, ADestroyedListLeavesItsItemsUnlinked) {
  std::array<item, 3> items;
  {
    item_list list;
    for (item& i : items) list.push_back(i);
  }
  for (const item& i : items) EXPECT_FALSE(i.link.linked());
}

TEST(List, AnItemMayLeaveWhileTheListIsWalked) {
  std::array<item, 5> items;
  item_list list;
  for (int n = 0; item & i : items) i.number = n++, list.push_back(i);
  for (auto at = list.begin(); at != list.end();) {
    item& i = *at++;
    if (i.number % 2 == 0) item_list::erase(i);
  }
  EXPECT_EQ(contents(list), (std::vector<item*>{&items[1], &items[3]}));
}

}  // namespace
}  // namespace forebay
