#include "worker.h"
#include <cstring>
#include <string>
#include "errors.h"

namespace dvm {

constexpr uint64_t PUBLISHED_TOGETHER = 16, PUBLISHED_AFTER_NS = 5'000;

Encoder::Encoder(const EncoderOptions& options) : options_(options) {
  if (options.control >= 0) {
    control_ = Control(options.control);
    received_before_ = control_.worker(options.worker, WORKER_RECEIVED).load();
  }
  if (options.ring >= 0) ring_ = Ring(options.ring);
  if (options.trace >= 0) trace_ = Trace(options.trace);
}

void Encoder::add_plan(uint32_t number, std::span<const uint8_t> bytes) {
  std::string error;
  auto plan = Plan::load(bytes.data(), bytes.size(), error);
  if (!plan) throw Error("GraphError", error);
  plans_[number] = std::move(plan);
}

Encoder::Instance Encoder::parse(std::span<const uint8_t> instances, size_t at) {
  auto bad = [](const char* what, uint64_t got, uint64_t allowed) {
    return Error("ProtocolError", say("encoder: instances: ", what, ", got ", got, ", allowed ", allowed));
  };
  InstanceHead head;
  if (instances.size() - at < sizeof head) throw bad("truncated head, bytes", instances.size() - at, sizeof head);
  memcpy(&head, instances.data() + at, sizeof head);
  at += sizeof head;
  auto plan = plans_.find(head.plan);
  if (plan == plans_.end()) throw bad("unknown plan", head.plan, plans_.size());
  if (head.symbols != plan->second->symbols().size()) throw bad("symbols", head.symbols, plan->second->symbols().size());
  if (instances.size() - at < head.symbols * 8) throw bad("truncated symbols, bytes", instances.size() - at, head.symbols * 8);
  symbols_.resize(head.symbols);
  if (head.symbols) memcpy(symbols_.data(), instances.data() + at, head.symbols * 8);
  return {head.program, head.plan, plan->second.get(), symbols_, at + head.symbols * 8};
}

std::span<const uint8_t> Encoder::encode_one(const Instance& instance, uint64_t& now) {
  const Plan& plan = *instance.plan;
  if (options_.control >= 0)
    control_.worker(options_.worker, WORKER_RECEIVED).store(received_before_ + encoded_ + 1, std::memory_order_release);
  const uint64_t begin = now;
  values_.resize(plan.exprs().size());
  if (scratch_.size() < plan.program_bytes_max()) scratch_.resize(plan.program_bytes_max());
  EncodeResult result{};
  if (plan.evaluate(instance.symbols.data(), values_.data()))
    result = dvm::encode(plan, values_.data(), scratch_.data(), scratch_.size());
  work_for(options_.encode_work_ns);
  now = now_ns();
  trace_.add(TraceKind::ENCODE, begin, now, instance.program, instance.number);
  if (options_.control >= 0) {
    auto& spent = control_.worker(options_.worker, WORKER_ENCODE_NS);
    spent.store(spent.load(std::memory_order_relaxed) + now - begin, std::memory_order_relaxed);
  }
  return {scratch_.data(), result.error ? 0 : size_t(result.bytes)};
}

template <class Emit>
size_t Encoder::encode_all(std::span<const uint8_t> instances, size_t start, double budget_us, Emit emit) {
  size_t at = std::min(start, instances.size());
  uint64_t now = now_ns();
  for (const uint64_t end = now + uint64_t(budget_us * 1e3); at < instances.size();) {
    Instance instance = parse(instances, at);
    if (!emit(instance, encode_one(instance, now), now)) break;
    ++encoded_;
    at = instance.end;
    if (now >= end) break;
  }
  return at;
}

size_t Encoder::encode(std::span<const uint8_t> instances, size_t start, double budget_us) {
  auto& encoded = control_.worker(options_.worker, WORKER_ENCODED);
  control_.worker(options_.worker, WORKER_WORKER_CPU).store(cpu_now(), std::memory_order_relaxed);
  uint64_t pending = 0, published_ns = 0;
  auto publish = [&] {
    ring_.publish();
    encoded.fetch_add(std::exchange(pending, 0));
    if (control_.get(CONTROL_WAITING_PROGRAM))
      control_.wake_device();  // a device that has nothing to run sleeps on until the end
  };
  const size_t at = encode_all(instances, start, budget_us,
                               [&](const Instance& instance, std::span<const uint8_t> program, uint64_t now) {
                                 RingHead head{uint32_t(RingKind::PROGRAM), 0, instance.program};
                                 if (program.size() > ring_.message_bytes_max() - sizeof head) program = {};
                                 if (!ring_.append({reinterpret_cast<const uint8_t*>(&head), sizeof head}, program))
                                   return false;
                                 if (++pending >= PUBLISHED_TOGETHER || now - published_ns > PUBLISHED_AFTER_NS)
                                   publish(), published_ns = now;
                                 return true;
                               });
  publish();
  control_.wake_device();
  return at;
}

size_t Encoder::encode(std::span<const uint8_t> instances, size_t start, double budget_us, Programs& out) {
  return encode_all(instances, start, budget_us, [&](const Instance& instance, std::span<const uint8_t> program, uint64_t) {
    out.emplace_back(instance.program, std::vector<uint8_t>(program.begin(), program.end()));
    return true;
  });
}

}  // namespace dvm
