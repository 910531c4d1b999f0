#include "automaton.h"

#include <deque>

#include "text.h"

namespace wcse {

Automaton::Automaton(const std::vector<std::string>& strings, bool after_visible) : waits_(after_visible) {
    const auto add = [&] {
        next_.emplace_back(256, -1);
        fail_.push_back(0);
        ends_.push_back(0);
        return static_cast<int32_t>(fail_.size()) - 1;
    };
    add();
    for (const std::string& text : strings) {
        int32_t node = 0;
        for (const char c : text) {
            const auto byte = static_cast<uint8_t>(c);
            if (next_[static_cast<size_t>(node)][byte] < 0) {
                const int32_t made = add();
                next_[static_cast<size_t>(node)][byte] = made;
            }
            node = next_[static_cast<size_t>(node)][byte];
        }
        ends_[static_cast<size_t>(node)] = 1;
    }
    // Breadth first: a node's missing edges are those of its longest proper suffix in the trie.
    std::deque<int32_t> open{0};
    while (!open.empty()) {
        const auto node = static_cast<size_t>(open.front());
        open.pop_front();
        ends_[node] |= ends_[static_cast<size_t>(fail_[node])];
        for (size_t byte = 0; byte < 256; byte++) {
            const int32_t child = next_[node][byte];
            const int32_t other = node ? next_[static_cast<size_t>(fail_[node])][byte] : 0;
            if (child < 0) {
                next_[node][byte] = other;
            } else {
                fail_[static_cast<size_t>(child)] = other;
                open.push_back(child);
            }
        }
    }
}

int32_t Automaton::step(int32_t state, uint8_t byte) const {
    if (waits_ && state == 0) return is_space(static_cast<char>(byte)) ? 0 : 1;
    return next_[static_cast<size_t>(state - waits_)][byte] + waits_;
}

int32_t Automaton::run(int32_t state, std::string_view bytes) const {
    int32_t found = 0;
    for (const char c : bytes) {
        state = step(state, static_cast<uint8_t>(c));
        if (state >= waits_ && ends_[static_cast<size_t>(state - waits_)]) found = kFound;
    }
    return state | found;
}

}  // namespace wcse
