// Delimiters and stop strings as tables that a device can follow: next = table[state][token].
//
// The tables say of a text what TextMatcher says of it: a delimiter counts once a visible byte of the step came
// before it, stop strings count everywhere (Aho and Corasick, 1975). They know whether something was completed, not
// where it began: that is TextMatcher's.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace wcse {

class Automaton {
public:
    static constexpr int32_t kFound = 1 << 15;  // bit of an entry: the token completed something

    // Finds any of the strings; with `after_visible` only behind a visible byte (not an ASCII space), which is where
    // state 0 waits. Strings must not be empty.
    Automaton(const std::vector<std::string>& strings, bool after_visible);

    int32_t states() const { return static_cast<int32_t>(fail_.size()) + waits_; }
    int32_t begin() const { return 0; }
    int32_t run(int32_t state, std::string_view bytes) const;  // the state after the bytes, with kFound

private:
    int32_t step(int32_t state, uint8_t byte) const;

    int32_t waits_;  // 1: state 0 waits for a visible byte and the trie's root is state 1
    std::vector<std::vector<int32_t>> next_;  // of trie nodes; -1: none
    std::vector<int32_t> fail_;
    std::vector<uint8_t> ends_;  // a string ends here, or at a suffix of here
};

}  // namespace wcse
