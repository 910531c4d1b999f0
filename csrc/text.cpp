#include "text.h"

#include <algorithm>
#include <stdexcept>

namespace wcse {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("TextMatcher." + what); }

}  // namespace

TextMatcher::TextMatcher(const std::vector<std::string>& token_bytes) {
    token_end_.reserve(token_bytes.size());
    for (const std::string& bytes : token_bytes) {
        text_ += bytes;
        token_end_.push_back(text_.size());
    }
}

int32_t TextMatcher::pattern(const std::string& delimiter, const std::vector<std::string>& stops) {
    Pattern made{delimiter, stops, delimiter.empty() ? 0 : delimiter.size() - 1, 0};
    for (const std::string& stop : stops) {
        if (stop.empty()) refuse("pattern: a stop string is empty; leave it out");
        made.memory = std::max(made.memory, stop.size() - 1);
    }
    patterns_.reserve(patterns_.size() + 1);
    free_patterns_.reserve(patterns_.size() + 1);
    const auto id = free_patterns_.empty() ? static_cast<int32_t>(patterns_.size()) : free_patterns_.back();
    const auto [place, is_new] = pattern_ids_.emplace(std::make_pair(delimiter, stops), id);
    if (is_new && free_patterns_.empty()) {
        patterns_.push_back(std::move(made));
    } else if (is_new) {
        free_patterns_.pop_back();
        patterns_[static_cast<size_t>(id)] = std::move(made);
    }
    patterns_[static_cast<size_t>(place->second)].users++;
    return place->second;
}

void TextMatcher::release(int32_t pattern) {
    need_pattern(pattern, "release");
    leave(pattern);
}

void TextMatcher::leave(int32_t pattern) {
    Pattern& left = patterns_[static_cast<size_t>(pattern)];
    if (--left.users) return;
    pattern_ids_.erase({left.delimiter, left.stops});
    left = Pattern();
    free_patterns_.push_back(pattern);
}

int32_t TextMatcher::open(int32_t pattern, std::string_view history) {
    Pattern& followed = need_pattern(pattern, "open");
    Slot slot;
    slot.pattern = pattern;
    slot.tail = history.substr(history.size() - std::min(history.size(), followed.memory));
    slot.end = static_cast<int64_t>(history.size());
    int32_t id;
    if (closed_.empty()) {
        closed_.reserve(slots_.size() + 1);
        id = static_cast<int32_t>(slots_.size());
        slots_.push_back(std::move(slot));
    } else {
        id = closed_.back();
        closed_.pop_back();
        slots_[static_cast<size_t>(id)] = std::move(slot);
    }
    followed.users++;
    return id;
}

void TextMatcher::close(int32_t slot) {
    Slot& ended = need(slot, "close");
    leave(ended.pattern);
    ended = Slot();
    closed_.push_back(slot);
}

void TextMatcher::new_step(int32_t slot) {
    need(slot, "new_step").visible = -1;
}

void TextMatcher::advance(const int32_t* slots, const int32_t* tokens, size_t n, uint8_t* found) {
    for (size_t i = 0; i < n; i++) {  // all or nothing
        need(slots[i], "advance");
        if (tokens[i] < 0 || static_cast<size_t>(tokens[i]) >= token_end_.size())
            refuse("advance: token " + std::to_string(tokens[i]) + " of slot " + std::to_string(slots[i]) +
                   " is not in the table of " + std::to_string(token_end_.size()) + " tokens");
    }
    for (size_t i = 0; i < n; i++) found[i] = append(slots_[static_cast<size_t>(slots[i])], bytes_of(tokens[i]));
}

std::pair<int32_t, int64_t> TextMatcher::stop(int32_t id) const {
    const Slot& slot = need(id, "stop");
    if (slot.stop_index < 0) refuse("stop: no stop string was completed in slot " + std::to_string(id));
    return {slot.stop_index, slot.end - slot.stop_begin};
}

Automaton TextMatcher::automaton(int32_t pattern, uint8_t bit) const {
    if (pattern < 0 || static_cast<size_t>(pattern) >= patterns_.size())
        refuse("automaton: pattern " + std::to_string(pattern) + " does not exist");
    const Pattern& given = patterns_[static_cast<size_t>(pattern)];
    if (bit == kStop) return Automaton(given.stops, false);
    return Automaton(given.delimiter.empty() ? std::vector<std::string>{} : std::vector{given.delimiter}, true);
}

std::vector<uint16_t> TextMatcher::table(const Automaton& automaton) const {
    if (automaton.states() >= Automaton::kFound)
        refuse("table: " + std::to_string(automaton.states()) + " states; the stop strings are too long");
    std::vector<uint16_t> entries;
    entries.reserve(static_cast<size_t>(automaton.states()) * token_end_.size());
    for (int32_t state = 0; state < automaton.states(); state++)
        for (size_t token = 0; token < token_end_.size(); token++)
            entries.push_back(static_cast<uint16_t>(automaton.run(state, bytes_of(static_cast<int32_t>(token)))));
    return entries;
}

int32_t TextMatcher::state(const Automaton& automaton, int32_t id, uint8_t bit) const {
    const Slot& slot = need(id, "state");
    std::string_view text = slot.tail;  // what an unfinished match can need
    int32_t state = automaton.begin();
    if (bit == kDelimiter) {
        if (slot.visible < 0) return state;
        const int64_t begin = slot.end - static_cast<int64_t>(text.size());
        text.remove_prefix(static_cast<size_t>(std::clamp<int64_t>(slot.visible + 1 - begin, 0, text.size())));
        state = automaton.run(state, "x");  // the visible byte, whichever it was
    }
    return automaton.run(state, text) & ~Automaton::kFound;
}

std::string_view TextMatcher::bytes_of(int32_t token) const {
    const size_t begin = token == 0 ? 0 : token_end_[static_cast<size_t>(token) - 1];
    return std::string_view(text_).substr(begin, token_end_[static_cast<size_t>(token)] - begin);
}

TextMatcher::Pattern& TextMatcher::need_pattern(int32_t pattern, const char* operation) {
    if (pattern < 0 || static_cast<size_t>(pattern) >= patterns_.size() || !patterns_[static_cast<size_t>(pattern)].users)
        refuse(std::string(operation) + ": pattern " + std::to_string(pattern) + " does not exist");
    return patterns_[static_cast<size_t>(pattern)];
}

TextMatcher::Slot& TextMatcher::need(int32_t slot, const char* operation) {
    return const_cast<Slot&>(std::as_const(*this).need(slot, operation));
}

const TextMatcher::Slot& TextMatcher::need(int32_t slot, const char* operation) const {
    if (slot < 0 || static_cast<size_t>(slot) >= slots_.size() || slots_[static_cast<size_t>(slot)].pattern < 0)
        refuse(std::string(operation) + ": slot " + std::to_string(slot) + " is not open");
    return slots_[static_cast<size_t>(slot)];
}

uint8_t TextMatcher::append(Slot& slot, std::string_view bytes) {
    const Pattern& pattern = patterns_[static_cast<size_t>(slot.pattern)];
    std::string& window = slot.tail;
    const auto old = static_cast<int64_t>(window.size());
    const int64_t begin = slot.end - old;  // of the window in the text
    window += bytes;
    slot.end += static_cast<int64_t>(bytes.size());
    if (slot.visible < 0) {
        const auto at = std::find_if_not(bytes.begin(), bytes.end(), is_space);
        if (at != bytes.end()) slot.visible = begin + old + (at - bytes.begin());
    }

    // First place from `least` in the text on at which `what` lies and ends in the new bytes; -1: nowhere.
    const auto find = [&](const std::string& what, int64_t least) -> int64_t {
        const int64_t from = std::max({int64_t{0}, least - begin, old + 1 - static_cast<int64_t>(what.size())});
        const size_t at = window.find(what, static_cast<size_t>(from));
        return at == window.npos ? -1 : begin + static_cast<int64_t>(at);
    };

    uint8_t found = 0;
    if (!pattern.delimiter.empty() && slot.visible >= 0 && find(pattern.delimiter, slot.visible + 1) >= 0)
        found |= kDelimiter;
    int64_t best_end = slot.end + 1;
    for (size_t i = 0; i < pattern.stops.size(); i++) {
        const int64_t at = find(pattern.stops[i], 0);
        const int64_t end = at + static_cast<int64_t>(pattern.stops[i].size());
        if (at < 0 || end > best_end || (end == best_end && at >= slot.stop_begin)) continue;
        best_end = end;
        slot.stop_index = static_cast<int32_t>(i);
        slot.stop_begin = at;
        found |= kStop;
    }
    window.erase(0, window.size() - std::min(window.size(), pattern.memory));
    return found;
}

}  // namespace wcse
