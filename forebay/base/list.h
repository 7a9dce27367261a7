// Intrusive circular doubly-linked list, as Linux's list_head.
//
//   head <-> a.node <-> b.node <-> head        an empty head points to itself
//
// The list owns nothing: an element must outlive its membership. A node that is on no list points
// to itself, so `linked()` and `unlink()` need no list. Not thread-safe: the owner's lock guards
// list and nodes alike.
#pragma once

#include <cstddef>
#include <iterator>

#include "forebay/base/assert.h"

namespace forebay {

class list_node {
 public:
  list_node() noexcept = default;
  list_node(const list_node&) = delete;
  list_node& operator=(const list_node&) = delete;

  bool linked() const noexcept { return next_ != this; }

  // Takes the node off whatever list it is on; nothing happens if it is on none.
  void unlink() noexcept {
    prev_->next_ = next_;
    next_->prev_ = prev_;
    next_ = prev_ = this;
  }

  list_node* next() const noexcept { return next_; }
  list_node* prev() const noexcept { return prev_; }

  // Puts this node, which is on no list, between `before` and its successor.
  void insert_after(list_node& before) noexcept {
    FOREBAY_DCHECK(!linked());
    next_ = before.next_;
    prev_ = &before;
    before.next_->prev_ = this;
    before.next_ = this;
  }

 private:
  list_node* next_ = this;
  list_node* prev_ = this;
};

// A list of T linked through the member `Node`. All operations are O(1) but for clear().
template <typename T, list_node T::* Node>
class intrusive_list {
 public:
  class iterator {
   public:
    using iterator_category = std::bidirectional_iterator_tag;
    using value_type = T;
    using difference_type = std::ptrdiff_t;
    using pointer = T*;
    using reference = T&;

    iterator() noexcept = default;
    explicit iterator(list_node* node) noexcept : node_(node) {}
    T& operator*() const noexcept { return *owner(*node_); }
    T* operator->() const noexcept { return owner(*node_); }
    iterator& operator++() noexcept {
      node_ = node_->next();
      return *this;
    }
    iterator operator++(int) noexcept {
      iterator old = *this;
      ++*this;
      return old;
    }
    iterator& operator--() noexcept {
      node_ = node_->prev();
      return *this;
    }
    iterator operator--(int) noexcept {
      iterator old = *this;
      --*this;
      return old;
    }
    bool operator==(const iterator&) const noexcept = default;

   private:
    list_node* node_ = nullptr;
  };

  intrusive_list() noexcept = default;
  ~intrusive_list() { clear(); }
  intrusive_list(const intrusive_list&) = delete;
  intrusive_list& operator=(const intrusive_list&) = delete;

  bool empty() const noexcept { return !head_.linked(); }
  iterator begin() noexcept { return iterator(head_.next()); }
  iterator end() noexcept { return iterator(&head_); }

  T& front() noexcept { return *owner(*head_.next()); }
  T& back() noexcept { return *owner(*head_.prev()); }

  void push_front(T& item) noexcept { (item.*Node).insert_after(head_); }
  void push_back(T& item) noexcept { (item.*Node).insert_after(*head_.prev()); }

  // Puts `item`, which is on no list, behind `before`, which is on one.
  static void insert_after(T& before, T& item) noexcept { (item.*Node).insert_after(before.*Node); }

  T* pop_front() noexcept { return empty() ? nullptr : take(*head_.next()); }
  T* pop_back() noexcept { return empty() ? nullptr : take(*head_.prev()); }

  static void erase(T& item) noexcept { (item.*Node).unlink(); }

  // Unlinks every element; the elements themselves are left alone.
  void clear() noexcept {
    while (!empty()) head_.next()->unlink();
  }

 private:
  static T* owner(list_node& node) noexcept {
    // The distance of the member from the start of T, measured on storage that is never read: T is
    // any type whose members lie at fixed offsets, which holds for every class without virtual
    // bases.
    alignas(T) static constinit unsigned char storage[sizeof(T)] = {};
    T* probe = reinterpret_cast<T*>(storage);
    const auto offset = reinterpret_cast<unsigned char*>(&(probe->*Node)) - storage;
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(&node) - offset);
  }

  static T* take(list_node& node) noexcept {
    node.unlink();
    return owner(node);
  }

  list_node head_;
};

}  // namespace forebay
