#include "ahead.h"
#include <algorithm>

namespace dvm {

void RunAhead::observe(uint32_t plan, std::span<const int64_t> symbols) {
  if (symbols.size() > SYMBOLS_MAX) {
    last_.plan = 0;
    return;
  }
  if (last_.plan) {
    Successor& known = successor(last_.plan, plan);
    known.used_at = ++clock_;
    const bool right = apply(known, last_.symbols, expected_) &&
                       std::equal(expected_.begin(), expected_.end(), symbols.begin(), symbols.end());
    if (right) ++known.trust;
    else learn(known, last_.symbols, symbols), known.trust = 0;
    known.from.assign(last_.symbols.begin(), last_.symbols.end());
    known.to.assign(symbols.begin(), symbols.end());
  }
  last_.plan = plan;
  last_.symbols.assign(symbols.begin(), symbols.end());
}

void RunAhead::forget(uint32_t plan) {
  if (plan < after_.size()) std::vector<Successor>().swap(after_[plan]);
  if (last_.plan == plan) last_.plan = 0;
}

RunAhead::Successor& RunAhead::successor(uint32_t before, uint32_t plan) {
  if (before >= after_.size()) after_.resize(before + 1);
  auto& list = after_[before];
  for (Successor& known : list)
    if (known.plan == plan) return known;
  if (list.size() < SUCCESSORS_MAX) {
    list.emplace_back().plan = plan;
    return list.back();
  }
  Successor& oldest = *std::min_element(list.begin(), list.end(), [](auto& a, auto& b) { return a.used_at < b.used_at; });
  oldest = {};
  oldest.plan = plan;
  return oldest;
}

// The rule that holds for this time and the one before. A symbol at the same place is the likeliest source of a symbol.
void RunAhead::learn(Successor& known, std::span<const int64_t> from, std::span<const int64_t> to) {
  known.sources.clear();
  if (known.to.size() != to.size() || known.from.size() != from.size() || to.empty()) return;
  for (size_t j = 0; j < to.size(); ++j) {
    auto follows = [&](size_t i) { return i < from.size() && to[j] - from[i] == known.to[j] - known.from[i]; };
    size_t source = j;
    if (!follows(source))
      for (source = 0; source < from.size() && !follows(source);) ++source;
    if (source < from.size()) known.sources.push_back(int16_t(source));
    else if (to[j] == known.to[j]) known.sources.push_back(NUMBER);
    else return known.sources.clear();
  }
}

// False: there is no rule, or it leads nowhere.
bool RunAhead::apply(const Successor& rule, std::span<const int64_t> from, std::vector<int64_t>& to) {
  if (rule.sources.empty() || rule.from.size() != from.size()) return false;
  to.resize(rule.sources.size());
  for (size_t j = 0; j < to.size(); ++j) {
    const int16_t source = rule.sources[j];
    to[j] = source == NUMBER ? rule.to[j] : rule.to[j] + from[size_t(source)] - rule.from[size_t(source)];
    if (to[j] < 0) return false;
  }
  return true;
}

std::vector<RunAhead::Call> RunAhead::guesses(int depth, int branches, size_t limit) const {
  std::vector<Call> found;
  if (last_.plan) add_followers(last_, branches, limit, found);
  for (size_t at = 0, end = found.size(); depth > 1 && at < end; end = found.size(), --depth)
    for (; at < end; ++at) add_followers(Call(found[at]), branches, limit, found);
  return found;
}

void RunAhead::add_followers(const Call& call, int branches, size_t limit, std::vector<Call>& found) const {
  if (call.plan >= after_.size()) return;
  std::vector<const Successor*> trusted;
  for (const Successor& known : after_[call.plan])
    if (known.trust) trusted.push_back(&known);
  std::sort(trusted.begin(), trusted.end(), [](auto* a, auto* b) { return a->used_at > b->used_at; });
  for (size_t i = 0; i < trusted.size() && int(i) < branches && found.size() < limit; ++i) {
    Call guess{trusted[i]->plan, {}};
    if (apply(*trusted[i], call.symbols, guess.symbols)) found.push_back(std::move(guess));
  }
}

}  // namespace dvm
