// Delimiters and stop strings, matched on the bytes of the tokens that a model writes. A match may lie inside a
// token or span several. Knows bytes only: no Unicode, no vocabulary rules; "\r\n" is two bytes like any others.
//
// A slot follows one text. Its delimiter is looked for within the current step only, and only once a visible
// byte (not an ASCII space) came before it in the step, so blank lines ahead of a step do not end it. Stop
// strings may begin in an earlier step. What is found depends on the bytes alone, not on how tokens cut them,
// and a slot remembers only as many bytes as an unfinished match can need.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "automaton.h"

namespace wcse {

// Blank lines ahead of a step do not end it: these are the bytes that are not visible.
inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

class TextMatcher {
public:
    static constexpr uint8_t kDelimiter = 1, kStop = 2;  // bits of advance()

    // token_bytes[t]: the bytes that token t adds to the text.
    explicit TextMatcher(const std::vector<std::string>& token_bytes);

    // Id of a (delimiter, stop strings) pair; equal pairs have equal ids. An empty delimiter means none. It is kept
    // until release() was called as often as pattern(), and the slots that were opened with it are closed.
    int32_t pattern(const std::string& delimiter, const std::vector<std::string>& stops);
    void release(int32_t pattern);
    size_t patterns() const { return pattern_ids_.size(); }

    // A slot for a new text. history: text that came before it, in which a stop string may begin.
    int32_t open(int32_t pattern, std::string_view history = {});
    void close(int32_t slot);
    void new_step(int32_t slot);

    // Appends tokens[i] to the text of slots[i]; writes the bits of what was completed by it.
    void advance(const int32_t* slots, const int32_t* tokens, size_t n, uint8_t* found);

    // The last stop string completed, (its index, bytes from its start to the end of the text so far). Of
    // several in one token the one that was complete first, of those the longest.
    std::pair<int32_t, int64_t> stop(int32_t slot) const;

    // What finds the pattern's delimiter (kDelimiter) or its stop strings (kStop) token by token.
    Automaton automaton(int32_t pattern, uint8_t bit) const;

    // Entries of an automaton's table, [states, tokens]: the next state, and Automaton::kFound. Throws
    // std::invalid_argument when there are more states than an entry can name.
    std::vector<uint16_t> table(const Automaton& automaton) const;

    // Where the automaton is in the slot's text.
    int32_t state(const Automaton& automaton, int32_t slot, uint8_t bit) const;

private:
    struct Pattern {
        std::string delimiter;
        std::vector<std::string> stops;
        size_t memory = 0;  // longest string - 1: the bytes that an unfinished match can need
        int64_t users = 0;  // calls of pattern() and open slots; 0: the id is free
    };
    struct Slot {
        int32_t pattern = -1;    // -1: closed
        std::string tail;        // the last bytes of the text, at most `memory` between calls
        int64_t end = 0;         // bytes of text so far
        int64_t visible = -1;    // first visible byte of the current step, -1: none yet
        int32_t stop_index = -1;
        int64_t stop_begin = 0;
    };

    std::string_view bytes_of(int32_t token) const;
    Slot& need(int32_t slot, const char* operation);
    const Slot& need(int32_t slot, const char* operation) const;
    uint8_t append(Slot& slot, std::string_view bytes);
    Pattern& need_pattern(int32_t pattern, const char* operation);
    void leave(int32_t pattern);

    std::string text_;               // bytes of all tokens, one after the other
    std::vector<size_t> token_end_;  // end of each token's bytes
    std::vector<Pattern> patterns_;
    std::vector<int32_t> free_patterns_;
    std::map<std::pair<std::string, std::vector<std::string>>, int32_t> pattern_ids_;
    std::vector<Slot> slots_;
    std::vector<int32_t> closed_;
};

}  // namespace wcse
