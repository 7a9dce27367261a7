// The program around a set of rings: bench/ring/measures.py starts one for each library and asks
// them in turn.
//
//   ring_NAME --cpus 0,1 --windows 15               commands on standard input, one a line:
//     sample SUBJECT pipe|pair BATCH                -> ok NANOSECONDS WINDOWS DISTURBED
//     about                                         -> ok TEXT       what is measured
//   anything that cannot be done                    -> error TEXT
//
// What a sample is: tools/forebay/ring_pipe.h. Subjects live until the program ends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tools/forebay/ring_pipe.h"

namespace forebay::bench {

// A ring of pointers, with a name, whatever its type.
struct ring_subject {
  std::string name;
  std::function<tool::pipe_sample(const tool::pipe_request&)> measure;
};

// From an adapter (tool::PipedRing) that is made here.
template <typename Ring, typename... Args>
ring_subject subject(std::string name, Args&&... args) {
  const auto ring = std::make_shared<Ring>(std::forward<Args>(args)...);
  return {std::move(name),
          [ring](const tool::pipe_request& request) { return tool::measure_pipe(*ring, request); }};
}

int run_program(int argc, char** argv, const std::string& about,
                const std::vector<ring_subject>& subjects);

}  // namespace forebay::bench
