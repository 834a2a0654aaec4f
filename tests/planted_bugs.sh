#!/usr/bin/env bash
# Plants known bugs in a copy of the headers, one at a time, and expects the named test to turn red.
#
#   tests/planted_bugs.sh             all of them
#   tests/planted_bugs.sh --part 2/5  every fifth one, starting with the second
set -euo pipefail
cd "$(dirname "$0")/.."

part=1 parts=1
if [[ ${1:-} == --part ]]; then IFS=/ read -r part parts <<<"$2"; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile=("${CXX:-g++}" -std=c++20 -O1 -include tests/support/assert.hpp -Itests -I. "-DPAGEDKV_SOURCE_DIR=\"$PWD\""
  "-DPAGEDKV_MODELS_DIR=\"$PWD/examples/models\"")
"${compile[@]}" -c tests/support/main.cpp -o "$work/main.o"

count=0 missed=0

# What the engine's tests link beside their own file and main: sources of the engine, then libraries.
json="files/json_field files/mapped_file"
text="text/tokenizer text/tokenizer_reader text/bpe text/regex text/unicode $json -lpcre2-8 -lutf8proc"
declare -A links=(
  [engine/scheduler]=language_model [engine/engine]=language_model [engine/run_ahead]=language_model
  [engine/swap]=language_model [engine/drafts]=language_model [engine/logprobs]=language_model
  [engine/step_meter]=language_model [engine/progress]=language_model [engine/priority]=language_model
  [engine/soak]=language_model [engine/service]="service language_model $text"
  [engine/server/api_request]="server/api_request $text" [engine/server/api_response]="server/api_response server/metrics $text"
  [engine/files/model_config]="files/model_config $json" [engine/files/safetensors]="files/safetensors $json"
  [engine/parity]="language_model files/model_config files/safetensors model_cpu $json"
  [engine/text/tokenizer]="$text" [engine/text/tokenizer_families]="$text" [engine/text/chat_template]="text/chat_template text/chat_template_reader $text"
)

# plant NAME TEST HEADER SED: the sed expression must change exactly one place of include/pagedkv/HEADER, or of
# examples/HEADER where that begins with engine/.
plant() {
  local name=$1 test=$2 header=$3 edit=$4
  count=$((count + 1))
  if (((count - part) % parts != 0)); then return; fi
  local path=include/pagedkv/$header
  if [[ $header == engine/* ]]; then path=examples/$header; fi
  rm -rf "$work/include" "$work/examples"
  mkdir "$work/examples"
  cp -r include "$work/include"
  cp -r examples/engine "$work/examples/engine"
  sed -i "$edit" "$work/$path"
  local changed
  changed=$(diff "$path" "$work/$path" | grep -c '^>' || true)
  local sources=() libraries=() link
  for link in ${links[$test]:-}; do
    if [[ $link == -l* ]]; then libraries+=("$link"); else sources+=("$work/examples/engine/$link.cpp"); fi
  done
  local verdict=caught
  if [[ $changed -ne 1 ]]; then
    verdict="MISSED: the edit changes $changed lines of $header"
  elif ! "${compile[@]}" "-I$work/include" "-I$work/examples" "tests/${test}_test.cpp" "${sources[@]}" "$work/main.o" "${libraries[@]}" \
    -o "$work/test" 2>"$work/errors"; then
    verdict="MISSED: does not compile: $(head -1 "$work/errors")"
  elif { timeout 300 "$work/test"; } >/dev/null 2>&1; then
    verdict="MISSED: tests/${test}_test.cpp stays green"
  fi
  [[ $verdict == caught ]] || missed=$((missed + 1))
  echo "$name: $verdict"
}

plant "a shared tail is written without a copy" cache/model cache/sequence.hpp 's/ref_count(tail) > 1/ref_count(tail) > 2/'
plant "a fork shares uncommitted tokens" cache/model cache/sequence.hpp 's/const int num_tokens = num_committed();/const int num_tokens = size_;/'
plant "the one writer copies rows that are not written yet" cache/model cache/sequence.hpp 's/tail_rows == 0 || size_ > num_committed_/tail_rows == 0/'
plant "truncated rows are still stored" cache/model cache/step_plan.hpp 's/      slot = dead_slot;/      static_cast<void>(slot);/'
plant "a moved sequence forgets its open step" cache/sequence cache/sequence.hpp 's/step_(std::exchange(other.step_, 0))/step_(0)/'
plant "a window drops one block too many" cache/model cache/sequence.hpp 's|const int end = position / table_.block_size();|const int end = ceil_div(position, table_.block_size());|'
plant "commit forgets the holds" cache/model cache/step_plan.hpp 's/for (const BlockCopy& copy : copies_) allocator_->drop_hold(copy.source);//'
plant "a cancelled copy keeps its source" cache/model cache/step_plan.hpp 's/^    allocator_->drop_hold(source);$//'
plant "memory runs out after blocks were taken" cache/out_of_memory cache/step_plan.hpp 's/allocator.open_steps_.reserve();//'
plant "the salt does not count in a hit" cache/prefix_cache cache/prefix_scope.hpp 's/append_number(bytes, scope.salt)/append_number(bytes, 0)/'
plant "a copied chunk does not count as an owner" cache/block_table cache/block_table.hpp 's/allocator_->records_.add_user(entry);/static_cast<void>(entry);/'
plant "a copied chunk does not share its children" cache/block_table cache/block_table.hpp 's/nodes().share(Nodes::child(entry));/static_cast<void>(entry);/'
plant "a chunk that was copied keeps its user" cache/block_table cache/block_table.hpp 's/^    nodes().drop(node);$//'
plant "a shared chunk is written" cache/block_table cache/block_table.hpp 's/if (!nodes().is_shared(node)) return node;/return node;/'
plant "a table that was shared still believes that its tail is its own" cache/fork cache/block_table.hpp '/other.num_blocks_ = num_blocks_;/{n;s/tail_ = nullptr;//}'
plant "a share does not count" cache/block_table cache/block_table.hpp 's/if (root_ != NodeId::none) nodes().share(root_);//'
plant "the cut entries of the kept chunk are not released" cache/block_table cache/block_table.hpp 's/^    allocator_->release(tail_from(first));$//'
plant "the cut entries of the kept chunk stay in it" cache/block_table cache/block_table.hpp 's/std::ranges::fill(tail_from(first), BlockId::none);//'
plant "the cut entries of the kept chunk do not wait for deeper ones" cache/long_tables cache/block_table.hpp 's/if (nodes().has_dead()) {  /if (false) {  /'
plant "cut chunks are dropped first to last" cache/long_tables cache/block_table.hpp 's/for (std::size_t i = Nodes::fanout - 1; i > digit(last, level); --i) drop_child/for (std::size_t i = digit(last, level) + 1; i < Nodes::fanout; ++i) drop_child/'
plant "the chunks behind a window are not dropped" cache/block_table cache/block_table.hpp 's/for (std::size_t i = digit(end, level); i-- > 0;) drop_child(entries\[i\]);//'
plant "a window drops its chunks first to last" cache/long_tables cache/block_table.hpp 's/for (std::size_t i = digit(end, level); i-- > 0;) drop_child/for (std::size_t i = 0; i < digit(end, level); ++i) drop_child/'
plant "a table grows a level too late" cache/block_table cache/block_table.hpp 's/while (num_blocks_ >= capacity(height_)) {/while (num_blocks_ > capacity(height_)) {/'
plant "too little room is made for a path" cache/block_table cache/block_table.hpp 's/const std::int64_t path = height_ + 2;/const std::int64_t path = 0 * height_;/'
plant "the range of a cut is one entry short" cache/table_changes cache/block_table.hpp '/--height_;/{n;n;s/note_edit(num_kept, /note_edit(num_kept + 1, /}'
plant "a replaced entry is no edit" cache/table_changes cache/block_table.hpp 's/note_edit(index, index + 1);//'
plant "a window is no edit" cache/table_changes cache/block_table.hpp 's/note_edit(0, end);//'
plant "the queue of dead tables is walked without end" cache/long_tables cache/table_nodes.hpp 's/      max_entries -= fanout;//'
plant "the children of a dead chunk are walked first to last" cache/long_tables cache/table_nodes.hpp 's/for (const BlockId entry : entries(id))  \/\/ the last one is walked first/for (const BlockId entry : std::vector<BlockId>(entries(id).rbegin(), entries(id).rend()))/'
plant "a walked chunk is never used again" cache/block_table cache/table_nodes.hpp '/push_walking(child(entry));/{n;n;s/make_spare(id);//}'
plant "dead tables are not walked before a refusal" cache/long_tables cache/block_allocator.hpp 's/if (!nodes_.has_dead()) return false;/return false;/'
plant "a tail that only the dead share is copied" cache/long_tables cache/sequence.hpp 's/if (is_shared(tail) \&\& pool().has_dead_tables())/if (false)/'
plant "release order first to last where blocks are published" cache/block_allocator cache/block_allocator.hpp 's/      const BlockId id = ids\[left - 1\];/      const BlockId id = ids[ids.size() - left];/'
plant "a refused release leaves blocks on the free stack" cache/block_allocator cache/block_allocator.hpp 's/if (before == detail::Place::free) --num_recycled_;//'
plant "a refused release keeps idle blocks" cache/block_users cache/block_allocator.hpp '/if (before == detail::Place::free) --num_recycled_;/{n;n;s/recount(id, before);//}'
plant "a refused release is not undone" cache/block_allocator cache/block_allocator.hpp 's/undo_release(ids.subspan(left));//'
plant "idle blocks are told too late, after the undo" cache/block_users cache/block_allocator.hpp '/is_known(id) || records_.owners(id) == 0/{n;s/idle.flush();//}'
plant "guards are not counted" cache/quarantine cache/block_records.hpp 's/return is_pinned(id) \&\& users(id) == pins_\[index(id)\].guards ? Place::quarantined : Place::used;/return Place::used;/'
plant "a fence retires what is younger" cache/quarantine cache/block_allocator.hpp 's/if (guard->fence <= fence) drop_guard(guard->block);/drop_guard(guard->block);/'
plant "a retired guard is retired again" cache/quarantine cache/block_allocator.hpp 's/return guard.fence <= fence; });/return guard.fence < fence; });/'
plant "guards retire first to last" cache/quarantine cache/block_allocator.hpp 's/for (auto guard = guards_.rbegin(); guard != guards_.rend(); ++guard)/for (auto guard = guards_.begin(); guard != guards_.end(); ++guard)/'
plant "guarding takes idle blocks that are reserved" cache/reservation cache/block_allocator.hpp 's/require(num_taken <= num_available(), "BlockAllocator::guard/require(true, "BlockAllocator::guard/'
plant "reviving takes idle blocks that are reserved" cache/reservation cache/block_allocator.hpp 's/if (num_revived > num_available()) \[\[unlikely\]\]/if (num_revived > num_idle())/'
plant "a hold takes idle blocks that are reserved" cache/reservation cache/block_allocator.hpp 's/if (is_idle(id) \&\& num_available() == 0) fail/if (false) fail/'
plant "reserved blocks count as available" cache/reservation cache/block_allocator.hpp 's/return num_free() + num_idle_ - num_reserved_;/return num_free() + num_idle_;/'
plant "a reservation is spent twice" cache/reservation cache/reservation.hpp 's/^  reservation.shrink(from_reserve);$//'
plant "an append does not spend its reservation" cache/reservation cache/sequence.hpp 's/if (from_reserve > 0) reservation->shrink(from_reserve);//'
plant "a reservation of another allocator is taken" cache/reservation cache/sequence.hpp 's/if (reservation != nullptr) reservation->check_allocator(pool());//'
plant "a hold forgets the most rows" cache/block_users cache/block_allocator.hpp 's/pins.held_rows = max(pins.held_rows, num_rows);/pins.held_rows = num_rows;/'
plant "holds wrap at 65,536" cache/block_users cache/block_allocator.hpp 's/if (records_.pins(id).holds == detail::BlockRecords::max_pins) fail/if (false) fail/'
plant "owners wrap at 2^27" cache/block_users cache/block_allocator.hpp 's/if (records_.users(id) + ids.size() > detail::BlockRecords::max_users) \[\[unlikely\]\]/if (false)/'
plant "unsealed blocks are published" cache/block_allocator cache/block_allocator.hpp 's/if (!records_.is_sealed(id)) fail(id, "publish", "full and committed", "not");//'
plant "blocks filled with drafts are sealed" cache/drafts cache/sequence.hpp 's/ \&\& kind == Kind::token) plan.fills/) plan.fills/'
plant "accept keeps rejected rows" cache/drafts cache/sequence.hpp 's/shorten_to(num_committed_ + num_accepted);/shorten_to(size_);/'
plant "accepted blocks are not sealed" cache/drafts cache/sequence.hpp 's/for (int i = first; i < size_ \/ block_size; ++i) pool().seal(table_\[i\]);//'
plant "drafts are committed with their step" cache/drafts cache/sequence.hpp 's/num_committed_ : size_ - num_drafts_; }/num_committed_ : size_; }/'
plant "a cut among drafts leaves their number" cache/drafts cache/sequence.hpp 's/num_drafts_ = max(0, num_drafts_ - (size_ - num_tokens));//'
plant "an append comes between drafts and their acceptance" cache/drafts cache/sequence.hpp 's/require(num_drafts_ == 0 || (kind == Kind::draft \&\& step_ != 0), /require(true, /'
plant "drafts are accepted before their step is committed" cache/drafts cache/sequence.hpp 's/require(num_drafts_ == 0 || step_ == 0, "Sequence::accept/require(true, "Sequence::accept/'
plant "a fork shares the blocks of uncommitted tokens" cache/drafts cache/sequence.hpp 's/child.table_.truncate(num_blocks);/child.table_.truncate(table_.num_blocks());/'
plant "a fork shares the destination of a pending copy" cache/fork cache/sequence.hpp 's/child.table_.replace(num_blocks - 1, copy_source_);/allocator().release({\&copy_source_, 1});/'
plant "a committed block is not sealed" cache/sealing cache/step_plan.hpp 's/allocator_->seal(/(void)(/'
plant "a block is sealed though its last row was cut" cache/sealing cache/step_plan.hpp 's/!= dead_slot) allocator_->seal/!= dead_slot - 1) allocator_->seal/'
plant "a block that is written again stays sealed" cache/sealing cache/sequence.hpp 's/if (size_ == num_committed_) blocks.unseal(tail);//'
plant "a block that is written again by one token stays sealed" cache/sealing cache/block_allocator.hpp '/if (!records_.is_plain(id)) return false;/{n;s/unseal(id);//}'
plant "the fast append writes a block that others own" cache/fork cache/block_allocator.hpp 's/if (!records_.is_plain(id)) return false;//'
plant "the fast append forgets its drafts" cache/drafts cache/sequence.hpp 's/if (num_drafts_ != 0 || !more_rows_.empty() || size_ ==/if (!more_rows_.empty() || size_ ==/'
plant "a free block is taken though it is reserved" cache/reservation cache/block_allocator.hpp 's/if (num_recycled_ == 0 || num_available() == 0) return false;/if (num_recycled_ == 0) return false;/'
plant "a sequence that was cut keeps its copy" cache/step_plan cache/sequence.hpp 's/num_kept <= num_committed_ \/ block_size) {/num_kept < num_committed_ \/ block_size) {/'
plant "forks may publish what their parent may not" cache/sequence cache/sequence.hpp 's/child.may_publish_ = may_publish_;//'
plant "a remapped block keeps its owner" cache/remap cache/block_table.hpp 's/allocator_->release({&before, 1});/static_cast<void>(before);/'
plant "the last block is remapped though it is not full" cache/remap cache/sequence.hpp 's/index < num_committed() \/ table_.block_size(),/index < table_.num_blocks(),/'
plant "a row trusts an edit that it did not see" cache/table_changes cache/batch_tables.hpp 's/num_edits - before.num_edits <= 1) {/num_edits - before.num_edits <= 2) {/'
plant "a row takes one table for another" cache/table_changes cache/batch_tables.hpp 's/ \&\& before.table == now.table//'
plant "a log that is full does not say so" cache/table_changes cache/table_changes.hpp 's/num_forgotten_ += half;//'
plant "a changed entry is not listed" cache/table_changes cache/batch_tables.hpp 's/^    changes_.add(entry);$//'
plant "entries are listed that did not change" cache/table_changes cache/batch_tables.hpp 's/    if (block_ids_\[entry\] == id) return;//'
plant "a run of blocks is freed first to last" cache/block_users cache/block_records.hpp 's/freed = std::reverse_copy(/freed = std::copy(/'
plant "a published block is freed with its run" cache/block_allocator cache/block_records.hpp 's/users_mask | published | pinned;/users_mask | pinned;/'
plant "a pinned block is freed with its run" cache/block_users cache/block_records.hpp 's/users_mask | published | pinned;/users_mask | published;/'
plant "blocks that begin like a run are taken for one" cache/block_users cache/block_records.hpp 's/return (((p\[1\] - p\[0\]) ^ step) | .*$/return ((p[1] - p[0]) ^ step) == 0 \&\&/'
plant "a cut makes no room for the path that it copies" cache/out_of_memory cache/sequence.hpp 's/^    if (num_kept < table_.num_blocks() .*) table_.prepare(0, 1);$//'
plant "a fork makes no room for the path that it copies" cache/out_of_memory cache/sequence.hpp 's/if (num_blocks < table_.num_blocks() || copies) table_.prepare(0, 2);//'
plant "a window opens before there is room for the path that it copies" cache/out_of_memory cache/sequence.hpp '/if (end <= num_released_blocks_) return;/{n;s/table_.prepare(0, 1);//}'
plant "room for a guard is made after its block was pinned" cache/out_of_memory cache/block_allocator.hpp 's/if (wanted > guards_.capacity()) guards_.reserve(.*$//'
plant "the range of a cut in the last chunk is one entry short" cache/table_changes cache/block_table.hpp '/drop_from_tail(num_kept);/{n;s/note_edit(num_kept, /note_edit(num_kept + 1, /}'
plant "the last chunk is cut in place though it is another one" cache/block_table cache/block_table.hpp 's/return tail_ != nullptr \&\& last .*;/return tail_ != nullptr;/'
plant "a shared chunk is cut in place" cache/block_table cache/block_table.hpp 's/return tail_ != nullptr \&\& last /return last /'
plant "the fast append takes the rows of others for its own" cache/step_plan cache/sequence.hpp 's/if (rows_.first + rows_.count != plan.num_rows()) return false;//'
plant "the fast append takes part in two open steps" cache/step_plan cache/sequence.hpp 's/if (step_ >= pool().open_steps_.oldest()) return false;.*$//'
plant "hash ignores key" cache/prefix_hash cache/hash.hpp 's/secrets_\[i\] = key = detail::hash_mix(key, std::uint64_t{i})/secrets_[i] = detail::hash_mix(7, std::uint64_t{i})/'
plant "hash drops length of extra" cache/prefix_hash cache/hash.hpp 's/bytes\.size() \^ secrets_\[11\]/0 ^ secrets_[11]/'
plant "index: fingerprint decides" cache/prefix_tree cache/prefix_tree.hpp 's/return index_\.find(fingerprint(hash), \[&\](EntryId id) { return is_same(id, parent, tokens, extra); });/return index_.find(fingerprint(hash), [\&](EntryId) { return true; });/'
plant "tree: parent not compared" cache/prefix_tree cache/prefix_tree.hpp 's/if (e\.parent != parent || /if (/'
plant "tree: extra not compared" cache/prefix_tree cache/prefix_tree.hpp 's/(e\.extra == 0) != extra\.empty() || extras_\[e\.extra\] != extra/false/'
plant "tree: epoch not compared" cache/prefix_tree cache/prefix_tree.hpp 's/return e\.epoch == epoch_;/return true;/'
plant "tree: promoted copy lost" cache/prefix_tree cache/prefix_tree.hpp 's/\*at = link(block)\.next_copy;/*at = BlockId::none;/'
plant "scope: extras by wrong binary search" cache/prefix_scope cache/prefix_scope.hpp 's/return extra\.end <= position;/return extra.begin <= position;/'
plant "scope: salt left out" cache/prefix_scope cache/prefix_scope.hpp 's/append_number(bytes, scope\.salt);/append_number(bytes, 0);/'
plant "match: prefers idle copies" cache/prefix_cache cache/prefix_match.hpp 's/if (tree\.has_duplicates(entry))/if (false)/'
plant "match: plain run past extras" cache/prefix_scenarios cache/prefix_match.hpp 's/min(num_full, extra->begin \/ block_size)/num_full/'
plant "cache: hits not counted as idle" cache/prefix_cache cache/prefix_match.hpp 's/match\.num_idle += allocator\.is_idle(match\.blocks\[i\]);//'
plant "cache: watermark ignored" cache/prefix_cache cache/prefix_cache.hpp 's/ - match_\.num_idle - options\.watermark/ - match_.num_idle/'
plant "cache: never is later" cache/prefix_cache cache/prefix_cache.hpp 's/return refuse(Refusal::never);/return refuse(Refusal::later);/'
plant "cache: no retreat to whole blocks" cache/prefix_cache cache/prefix_cache.hpp 's/if (num_missing > 0 && match_\.num_tokens % allocator_\.block_size() > 0) {/if (false) {/'
plant "cache: dead tables forgotten" cache/prefix_scenarios cache/prefix_cache.hpp 's/if (num_missing > 0 && allocator_\.has_dead_tables()) {/if (false) {/'
plant "cache: max_append ignored" cache/prefix_cache cache/prefix_cache.hpp 's/const int appended = min(to_compute, options\.max_append);/const int appended = to_compute;/'
plant "cache: no prepare" cache/prefix_out_of_memory cache/prefix_cache.hpp 's/    sequence\.prepare(static_cast<int>(match_\.blocks\.size()), appended, plan);/    /'
plant "cache: touched not told" cache/prefix_reset cache/prefix_cache.hpp 's/for (const BlockId block : match_\.blocks) store_\.eviction()\.touched(block, options\.retention);//'
plant "cache: time stands still" cache/prefix_reset cache/prefix_cache.hpp 's/store_\.eviction()\.advance(now);/static_cast<void>(now);/'
plant "twins: never wait" cache/prefix_twins cache/prefix_cache.hpp 's/options\.twins == Twins::wait && !options\.no_read/false \&\& !options.no_read/'
plant "twins: always wait" cache/prefix_twins cache/prefix_cache.hpp 's/options\.twins == Twins::wait && !options\.no_read/!options.no_read/'
plant "twins: wait though it gains nothing" cache/prefix_twins cache/prefix_cache.hpp 's/!is_known && gains_by_waiting/!is_known/'
plant "twins: scope not compared" cache/prefix_twins cache/prefix_cache.hpp 's/key\.extra\.insert(0, scope_key_);//'
plant "twins: extras not compared" cache/prefix_twins cache/prefix_pending.hpp 's/r\.extra == key\.extra && //'
plant "twins: for ever" cache/prefix_twins cache/prefix_pending.hpp 's/return allocator_\.state(record\.block) == BlockState::writing &&/return true ||/'
plant "twins: step not asked" cache/prefix_twins cache/prefix_pending.hpp 's/allocator_\.is_open(record\.step)/true/'
plant "pins: budget ignored" cache/prefix_pins cache/prefix_pins.hpp 's/for (; num_blocks() > budget_; ++num_dropped) drop(pins_\.begin());/static_cast<void>(num_dropped);/'
plant "pins: newest dropped" cache/prefix_pins cache/prefix_pins.hpp 's/for (; num_blocks() > budget_; ++num_dropped) drop(pins_\.begin());/for (; num_blocks() > budget_; ++num_dropped) drop(pins_.end() - 2);/'
plant "pins: shared counted twice" cache/prefix_pins cache/prefix_pins.hpp 's/++blocks_\[from - 1\]\.num_pins;/blocks_[--to] = {.block = *block, .num_pins = 1};/'
plant "store: scope not compared" cache/prefix_scenarios cache/prefix_store.hpp 's/require(tree_\.extra(tree_\.root(parent)) == key/require(true/'
plant "store: tokens not compared" cache/prefix_cache cache/prefix_store.hpp 's/require(std::ranges::equal(tree_\.tokens_of(parent)/require(true || std::ranges::equal(tree_.tokens_of(parent)/'
plant "store: old epoch goes on" cache/prefix_reset cache/prefix_store.hpp 's/if (!tree_\.is_current(parent)) return;//'
plant "store: no rollback" cache/prefix_out_of_memory cache/prefix_store.hpp 's/if (allocator_\.is_published(table\[i\])) take_out(table\[i\], false);/static_cast<void>(i);/'
plant "store: first child evicted before its continuation" cache/prefix_cache cache/prefix_store.hpp 's/while (tree_\.first_child(leaf) != EntryId::none) leaf = tree_\.first_child(leaf);//'
plant "store: old epoch removed again" cache/events cache/prefix_store.hpp 's/const bool is_current = tree_\.is_current(entry);/const bool is_current = true;/'
plant "store: remap publishes anyway" cache/prefix_reset cache/prefix_store.hpp 's/if (entry != EntryId::none && at\.duplicates != nullptr) {/if (false) {/'
plant "events: snapshot of old epochs" cache/events cache/events.hpp 's/ || !tree\.is_current(root)//'
plant "events: extras not in the key" cache/events cache/events.hpp 's/key(id) = content_key(key(parent), tokens, tree\.extra(id));/key(id) = content_key(key(parent), tokens);/'
plant "a chunk's copy forgets an owner" cache/model cache/block_table.hpp 's/        allocator_->records_.add_user(entry);/        static_cast<void>(entry);/'
plant "a write changes the chunk of a sharer" cache/exhaustive cache/block_table.hpp 's/if (!nodes().is_shared(node)) return node;/if (level == 0 || !nodes().is_shared(node)) return node;/'
plant "a shared chunk of a long table is dropped" cache/model cache/block_table.hpp 's/        nodes().share(Nodes::child(entry));/        static_cast<void>(entry);/'
plant "a tail under a hold is written" cache/model cache/sequence.hpp 's/return is_shared(tail) || tail_rows < pool().num_frozen_rows(tail);/return is_shared(tail);/'
plant "a pending copy is copied once more" cache/model cache/sequence.hpp 's/ || copy_source_ != BlockId::none) return false;/) return false;/'
plant "drafts are sealed before they are accepted" cache/model cache/sequence.hpp 's/ \&\& kind == Kind::token) plan.fills(block)/) plan.fills(block)/'
plant "accepted drafts are not sealed" cache/exhaustive cache/sequence.hpp 's/for (int i = first; i < size_ \/ block_size; ++i) pool().seal(table_\[i\]);/static_cast<void>(first);/'
plant "a fork shares the destination of a pending copy" cache/exhaustive cache/sequence.hpp 's/^    if (copies) {$/    if (false) {/'
plant "a fork may publish what its parent may not" cache/model cache/sequence.hpp 's/    child.may_publish_ = may_publish_;//'
plant "a guarded block is free before its step retires" cache/exhaustive cache/block_allocator.hpp 's/      if (guard->fence <= fence) drop_guard/      if (guard->fence <= fence + 1) drop_guard/'
plant "a block that is written again stays sealed" cache/model cache/block_allocator.hpp 's/    if (records_.is_sealed(id)) records_.set_sealed(id, false);/    static_cast<void>(id);/'
plant "commit keeps the sources of copies" cache/exhaustive cache/step_plan.hpp 's/    for (const BlockCopy\& copy : copies_) allocator_->drop_hold(copy.source);//'
plant "a row that was killed seals its block" cache/exhaustive cache/step_plan.hpp 's/      if (slots_\[static_cast<std::size_t>(filled.last_row)\] != dead_slot) allocator/      allocator/'
plant "dead tables are not walked before an append is refused" cache/long_tables cache/block_allocator.hpp 's/      if (!nodes_.has_dead()) return false;/      return false;/'
plant "memory runs out when a guard is half on" cache/failure_injection cache/block_allocator.hpp 's/^.*guards_.reserve(.*$//'
plant "a table makes no room before it is changed" cache/failure_injection cache/sequence.hpp 's/      table_.prepare(num_new, copies_tail ? 1 : 0);//'
plant "a partial hit is cut into an image" cache/exhaustive cache/prefix_cache.hpp 's/match_.num_tokens = detail::whole_blocks(options.extras, match_.num_tokens, allocator_.block_size());/match_.num_tokens -= match_.num_tokens % allocator_.block_size();/'
plant "the tokens do not count in a hit" cache/model cache/prefix_tree.hpp 's/return std::memcmp(.*;$/return static_cast<void>(tokens), true;/'
plant "a prefix is evicted before its continuation" cache/exhaustive cache/prefix_store.hpp 's/if (tree_.first_child(entry) == EntryId::none || tree_.has_duplicates(entry)) return/return/'
plant "an idle hit counts as available" cache/exhaustive cache/prefix_match.hpp 's/    match.num_idle += allocator.is_idle(match.blocks\[i\]);//'
plant "a reset leaves what was cached to be found" cache/exhaustive cache/prefix_tree.hpp 's/if (parent == EntryId::none) return e.epoch == epoch_;/if (parent == EntryId::none) return true;/'
plant "a request is refused while free ids lie with other threads" cache/concurrent_block_allocator cache/concurrent_block_allocator.hpp 's/ \&\& !gather(stock, out.size())//'
plant "a thread takes ids that another one is leaving" cache/concurrent_block_allocator cache/concurrent_block_allocator.hpp 's/!= stock_->leaving) continue/> 0) continue/'
plant "all threads leave with the same mark" cache/concurrent_schedules cache/concurrent_block_allocator.hpp 's/-1 - static_cast<std::int32_t>(num_entered_++/-1 - 0 * static_cast<std::int32_t>(num_entered_++/'
plant "a stock that was emptied meanwhile gives ids all the same" cache/concurrent_schedules cache/concurrent_block_allocator.hpp 's/std::min(stock.size(), Threads::magazine_size)/Threads::magazine_size/'
plant "a pool of 2^64 elements has none" storage/kv_layout storage/kv_layout.hpp 's/elements \*= count;//'
plant "rows follow those of a request that pushed itself out" engine/scheduler engine/scheduler.hpp 's/i = 0; has_room \&\& i < running_/i = 0; i < running_/'
plant "an admission ignores the watermark" engine/scheduler engine/scheduler.hpp 's/: options_.watermark/: 0/'
plant "a request is thought to fit that never will" engine/scheduler engine/request.hpp 's/return shared + params.width() \* (longest - shared)/return longest/'
plant "equal samples recompute their last token as their trunk" engine/engine engine/request.hpp 's/std::min(std::ssize(a), std::ssize(b)) - 1/std::min(std::ssize(a), std::ssize(b))/'
plant "all samples draw the same numbers" engine/sampler engine/philox.hpp 's/philox({position, sample, 0, 0}/philox({position, 0 * sample, 0, 0}/'
plant "unlikely endings enter the pool of beams" engine/beam engine/beam.hpp 's/ends ? static_cast<int>(rank) >= width_/ends ? false/'
plant "beam search stops at the first ending" engine/beam engine/beam.hpp 's/static_cast<int>(finished_.size()) == width_ \&\& running_/!finished_.empty() \&\& running_/'
plant "prefill reads keys before every warp has fetched its share" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's|__syncthreads();  // these keys|// these keys|'
plant "prefill reads values before every warp has fetched its share" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's|__syncthreads();  // so have|// so have|'
plant "prefill overwrites what a slower warp still reads" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's|__syncthreads();  // the next|// the next|'
plant "prefill does not wait for its copies" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/in_flight = 2 \* (stages - 1)/in_flight = 2 * stages - 1/'
plant "prefill multiplies values that nobody wrote" cuda/kernels/prefill_sm80 cuda/kernels/paged_rows.cuh 's/(live >> row \& 1u) != 0);/true);/'
plant "prefill sees keys behind the last one" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/row < rows_end \&\& key < keys_end/row < rows_end/'
plant "prefill skips tiles by the latest query alone" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80_fetch.cuh 's/seen_keys(variant, tile.rows.begin + tile.offset/seen_keys(variant, tile.rows.end - 1 + tile.offset/'
plant "prefill forgets to rescale the output" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/fragment\[element\] \*= factor\[m\]\[element \/ 2\];/fragment[element] *= 1.f;/'
plant "prefill leaves a quad of lanes with different maxima" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/top = larger(top, __shfl_xor_sync(~0u, top, 2));//'
plant "prefill writes rows of the next sequence" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/if (row >= tile.rows.end) continue;//'
plant "prefill asks no rule in a tile that not all rows see" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/tile.rows.sequence, first, last, keys/tile.rows.sequence, last, last, keys/'
plant "prefill asks no rule for a row's end of its keys" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/keys.end <= tile.keys.end \&\& sees_all/sees_all/'
plant "prefill takes sequences that are decode's" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80_fetch.cuh 's/q_len < min_q_len ? 0 : q_len/q_len/'
plant "prefill on Hopper leaves what lies behind the last key" cuda/kernels/prefill_sm90 cuda/kernels/prefill_sm90.cuh 's/if (num_dead > 0 \&\& /if (num_dead > 256 \&\& /'
plant "the counter of tiles is not put back" cuda/kernels/prefill_schedule cuda/kernels/prefill_sm90_fetch.cuh 's/ counters.taken = 0;/ counters.taken += 0;/'
plant "prefill does not wait for the kernel in front" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/^  ptx::wait_for_previous_kernel();$//'
plant "decode multiplies values that nobody wrote" cuda/kernels/decode_sm80 cuda/kernels/paged_rows.cuh 's/(live \& 1u << row) != 0);/true);/'
plant "decode sees keys behind the last one" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/static_cast<int>(key < item.kv_len) \& //'
plant "decode forgets to rescale the output" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/dims\[octet\]\[i\] \*= scale\[i % 2\];/static_cast<void>(dims[octet][i]);/'
plant "a row's bits depend on the rows beside it" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/(sums\[octet\]\[1\], k\[1\]/(sums[octet][Config::octets == 1], k[1]/'
plant "decode joins all pieces of a row but its own slice's last" cuda/kernels/decode_sm80 cuda/kernels/decode_merge.cuh 's/slices.owner(row_begin + num_units - 1) - pieces.first_owner + 1;/slices.owner(row_begin + num_units - 1) - pieces.first_owner;/'
plant "decode takes prompts that are prefill's" cuda/kernels/decode_slices cuda/kernels/decode_slices.hpp 's/lengths.q_len() <= cut.max_q_len ? lengths.q_len() : 0/lengths.q_len()/'
plant "decode ends before the kernel beside it" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/^  if (cut.beside_previous) leave(cut);$//'
plant "ldmatrix meets a bank twice" cuda/tile/swizzle cuda/tile/swizzle.hpp 's|column / chunk ^ row / (8 / permuted) % permuted|column / chunk|'
plant "a panel of V is taken for the next eight rows" cuda/tile/descriptor cuda/tile/descriptor.hpp 's/matrix_descriptor(address, slab_bytes, /matrix_descriptor(address, eight_rows_bytes, /'
plant "a tile of keys behind a gap is skipped" cuda/tile/key_tiles cuda/tile/key_tiles.hpp 's/first_meeting(seen.second));/keys.end);/'
plant "a piece is merged at the wrong scale" attention/online_softmax attention/online_softmax.hpp 's/sum += piece.sum \* other/sum += piece.sum/'
plant "an empty row rescales by NaN" attention/online_softmax attention/online_softmax.hpp 's/old == -infinity ? 0.f : exp(old - max)/exp(old - max)/'
plant "NaN is finished into a row without keys" attention/online_softmax attention/online_softmax.hpp 's/if (sum == 0.f)/if (max == -infinity)/'
plant "a window sees one key too many" attention/variants attention/variants.hpp 's/p.query - p.key < window/p.query - p.key <= window/'
plant "a window's tiles begin one key too late" attention/variants attention/variants.hpp 's/0 : query - window + 1/0 : query - window + 2/'
plant "a chain forgets the second piece of its first rule" attention/variants attention/variant.hpp 's/ba = intersect(a.second, b.first),$/ba = ab,/'
plant "a tile of a chain forgets the second piece of its first rule" attention/variants attention/variant.hpp 's/ba = intersect(a.second, b.first), tail/ba = ab, tail/'
plant "a chain names keys between its pieces" attention/chain_keys attention/variant.hpp 's/if (middle.empty()) return {head, tail};//'
plant "a rule says that a query sees a key after it" attention/variants attention/variants.hpp 's/return keys.end <= first_query + 1;/return keys.end <= first_query + 2;/'
plant "a draft sees its siblings" attention/variants attention/variants.hpp 's/return (sees\[.*$/return p.key <= p.query;/'
plant "a tile of queries skips what only its first one sees" attention/variants attention/variant.hpp 's/{earliest.second.begin, latest.second.end}/{latest.second.begin, latest.second.end}/'
plant "the owner of a slice's last unit is the next slice" cuda/kernels/decode_slices cuda/kernels/decode_slices.hpp 's/static_cast<int>(unit \/ size)/static_cast<int>((unit + 1) \/ size)/'
plant "a sequence without keys has no item" attention/plan attention/plan.hpp 's/max(1, ceil_div(kv_len, split_keys))/ceil_div(kv_len, split_keys)/'
plant "offsets are 32 bits wide" cpu/attend_extremes core/view.hpp 's/std::int64_t offset = 0/int offset = 0/'
plant "blocks that are gone are read" cpu/attend_invariance cpu/tile.hpp 's/if (block >= 0 \&\& block < kv.num_blocks()) {/if (block >= 0) {/'
plant "hidden values are multiplied by zero" cpu/attend_extremes cpu/tile.hpp 's/if (least > 0.f) return add_values/return add_values/'
plant "the batch moves split boundaries" cpu/attend_invariance cpu/attend.hpp 's/const int any_number = .*;/const int any_number = 4;/'
plant "a prior is forgotten" cpu/attend_chains cpu/attend.hpp 's/prior_of(variant_, head)/-infinity/'
plant "a copy takes rows that are not valid" cpu/step cpu/step.hpp 's/slot < copy.num_rows/slot < blocks.extents[2]/'
plant "a call returns before its slowest task" cpu/executor cpu/executor.hpp 's/idle_.wait(lock.*$//'
plant "a copy kernel takes rows that are not valid" cuda/kernels/copy_blocks cuda/kernels/copy_blocks.cuh 's/num_rows = max(copy.num_rows, 0)/num_rows = max(copy.num_rows, 0) == 0 ? 0 : static_cast<int>(blocks.extents[2])/'
plant "layers that fill no group are not copied" cuda/kernels/copy_blocks cuda/kernels/copy_blocks.cuh 's/.num_groups = ceil_div(pieces.num_layers, layers_per_cta)/.num_groups = pieces.num_layers \/ layers_per_cta/'
plant "a tile has one piece more than the run" cuda/kernels/copy_blocks cuda/kernels/move_pieces.cuh 's/const int last = num_pieces - 1 - first_piece/const int last = num_pieces - first_piece/'
plant "rows of dead slots are stored" cuda/kernels/store_kv cuda/kernels/store_kv.cuh 's/from = slot < 0 ? nullptr : /from = /'
plant "slots are 32 bits wide" cuda/kernels/store_kv cuda/kernels/store_kv.cuh 's/  if (slot < std::int64_t{1} << 31) return/  return/'
plant "rows behind an empty sequence are the empty one's" cuda/kernels/gather_kv cuda/kernels/gather_kv.cuh 's/(begins(middle) <= row/(begins(middle) < row/'
plant "a tile that begins in one sequence lies in it" cuda/kernels/gather_kv cuda/kernels/gather_kv.cuh 's/last < begins(sequence + 1) ? sequence + 1 : num_seqs/sequence + 1/'
plant "a sequence's last block is full" cuda/kernels/build_tables cuda/kernels/build_tables.cuh 's/block_size : ragged.last_block_len(sequence)/block_size : block_size/'
plant "a swap's CTAs take one tile each" cuda/kernels/swap_blocks cuda/kernels/swap_blocks.cuh 's/tile += static_cast<int>(gridDim.x)/tile = num_tiles/'
plant "a swap reads V where K lies" cuda/kernels/swap_blocks cuda/kernels/swap_blocks.cuh 's/(is_key ? from_k : from_v)/from_k/'
plant "a swap's layers are as far apart there as here" cuda/kernels/swap_blocks cuda/kernels/swap_blocks.cuh 's/layer \* destination.layer_stride/layer * source.layer_stride/'
plant "blocks with gaps are swapped" storage/block_swap storage/block_swap.hpp 's/  require(is_dense_block(source), what, "without gaps", "with gaps");//'
plant "biases are dropped" engine/parity engine/backend_cpu.hpp 's/if (!params.bias.empty()) add_to_each_row(qkv, params.bias);//'
plant "queries are not normalised" engine/parity engine/backend_cpu.hpp 's/if (!params.q_norm.empty()) normalize_heads(q, params.q_norm);//'
plant "a window is one key too wide" engine/parity engine/backend_cpu.hpp 's/.window = sliding_window_}/.window = sliding_window_ + 1}/'
plant "a wrong scaling factor of rotary frequencies" engine/parity engine/rope.hpp 's/frequency \/ scaling.factor/frequency \/ (scaling.factor + 0.1)/'
plant "left-over tensors are ignored" engine/parity engine/model.hpp 's/checkpoint.refuse_others(used);//'
plant "an untied head is ignored" engine/parity engine/model.hpp 's/config_.tie_embeddings ? embedding_ : head_/embedding_/'
plant "the blend of rotary frequencies is the wrong way round" engine/files/model_config engine/rope.hpp 's/(1 - kept) \* divided + kept \* frequency/kept * divided + (1 - kept) * frequency/'
plant "layer_types is ignored" engine/files/model_config engine/files/model_config.cpp 's/    if (types.value() != each_layer(type))/    if (false)/'
plant "do_sample is ignored" engine/files/model_config engine/files/model_config.cpp 's/if (file.has("do_sample").*$//'
plant "a stop string that failed forgets its border" engine/text/stop_strings engine/text/stop_strings.hpp 's/matched = border\[matched - 1\];/matched = 0;/'
plant "too little is held back" engine/text/stop_strings engine/text/stop_strings.hpp 's/begun = std::max(begun, stop.num_matched);/begun = 0;/'
plant "a user may forge a role" engine/text/tokenizer_families engine/text/tokenizer.cpp 's/(!is_special(token.id) || prompt.is_trusted/(true || prompt.is_trusted/'
plant "text is not normalised" engine/text/tokenizer_families engine/text/tokenizer.cpp 's/if (nfc_) normal = /if (false) normal = /'
plant "digits come in runs" engine/text/tokenizer_families engine/text/tokenizer_reader.cpp 's/R"(\\p{N})" : /R"(\\p{N}+)" : /'
plant "an escaped newline is an n" engine/text/chat_template engine/text/jinja_text.hpp "s/escaped == 'n' ? /escaped == 'x' ? /"
plant "values behind a dropped block are read" cpu/attend_invariance cpu/tile.hpp 's/std::fill_n(v, num_lanes, kv.v.data);/std::fill_n(v, num_lanes, nullptr);/'
plant "a sum starts anew at each slice" cpu/attend cpu/panel.hpp 's/sums\[r\]\[v\] = add ?/sums[r][v] = false ?/'
plant "a product forgets its first slice" engine/gemm engine/gemm.hpp 's/panel, k > 0, out/panel, false, out/'
plant "blocks are counted as often as they are read" engine/step_meter engine/step_meter.hpp 's/if (is_new(batch.tables.block_ids(s, block)))/if (true)/'
plant "a finished sample is counted twice" engine/progress engine/progress.hpp 's/    if (track.is_done) return;.*$//'
plant "priorities do not count" engine/priority engine/request.hpp 's/return a->priority != b->priority ? a->priority < b->priority : /return /'
plant "blocks that samples share are swapped once each" engine/swap engine/swap_space.hpp 's/^    from.erase(std::unique(from.begin(), from.end()), from.end());$//'
plant "swapped blocks stay owned by nobody" engine/swap engine/swap_space.hpp 's/^    to.release(fresh);$//'
plant "swapped blocks do not come back" engine/swap engine/engine.hpp 's/if (!swap_.incoming().empty()) model_.swap_in(swap_.incoming());//'
plant "a request comes back without room for its next rows" engine/soak engine/scheduler.hpp 's/running_.empty() ? 0 : request.num_rows() + options_.watermark/0/'
plant "a swapped request goes on as if it had only decoded" engine/swap engine/scheduler.hpp 's/victim->interrupted = victim->state;/victim->interrupted = State::decode;/'
plant "a guess counts though another token was drawn" engine/drafts engine/engine.hpp 's/branch.tokens.size() == place \&\& branch.tokens.back() == awaited.draft/branch.tokens.size() == place/'
plant "wrong guesses stay in the cache" engine/drafts engine/engine.hpp 's/if (branch.kv.num_drafts() > 0)/if (branch.kv.num_drafts() > 9)/'
plant "guesses take the rows of those who decode" engine/drafts engine/scheduler.hpp 's/drafts_.max_drafts, budget_ - num_due_, /drafts_.max_drafts, /'
plant "guesses take more rows of logits than there are" engine/drafts engine/scheduler.hpp 's/extra_logit_rows_, num_useful/num_useful/'
plant "guesses go behind the last token that was asked for" engine/drafts engine/scheduler.hpp 's/extra_logit_rows_, num_useful/extra_logit_rows_/'
plant "the first place of an n-gram is taken, not the latest" engine/drafts engine/drafts.hpp 's/newest_\[hash_of(ngram)\] = num_indexed_ + 1/newest_.emplace(hash_of(ngram), num_indexed_ + 1)/'
plant "an engine with drafts runs ahead" engine/soak engine/engine.hpp 's/ \&\& options_.drafts.max_drafts == 0;/;/'
plant "a scored prompt skips what the cache has" engine/logprobs engine/scheduler.hpp 's/.no_read = request.lacks_scores()/.no_read = false/'
plant "a scored prompt takes more rows of logits than there are" engine/logprobs engine/scheduler.hpp 's/if (!request.lacks_scores()) return/return/'
plant "prefixes are published without their salt" engine/priority engine/engine.hpp 's/branch.kv, {.salt = request.cache_salt}/branch.kv, {}/'
plant "a salt does not count at admission" engine/priority engine/scheduler.hpp 's/{.salt = request.cache_salt,/{.salt = 0,/'
plant "blocks are offered to the cache but once" engine/engine engine/engine.hpp 's/    branch.num_published = num_full;/    branch.num_published = 1 << 20;/'
plant "min_tokens counts the prompt" engine/sampler engine/sampler.hpp 's/position - context.prompt_len < params.min_tokens/position < params.min_tokens/'
plant "the prompt is penalised for its presence" engine/sampler engine/sampler.hpp 's/context.tokens.subspan(index(context.prompt_len))/context.tokens/'
plant "frequency does not count" engine/sampler engine/sampler.hpp 's/ \* static_cast<float>(count)//'
plant "the likeliest of the rest are not looked for" engine/sampler engine/sampler.hpp 's/if (last != candidates_.end()) std::nth_element(first, last, candidates_.end(), likelier);//'
plant "a sum of exponentials is not brought to its new highest" engine/logprobs engine/logprobs.hpp 's/^      sum \*= std::exp.*$//'
plant "likeliest tokens are told without their order" engine/logprobs engine/logprobs.hpp 's/std::upper_bound(top.begin(), top.end(), token, likelier)/top.end()/'
plant "rows of sequences that have gone stay in the tables" engine/engine engine/step_input.hpp 's/if (std::ssize(work) < tables_.num_seqs()) tables_.clear();//'
plant "a search that is over leaves its request running" engine/engine engine/engine.hpp 's/^    if (!request.beam->is_over()) return;$/    return;/'
plant "rows of a request that pushed itself out are computed" engine/scheduler engine/scheduler.hpp 's/        work_.resize(num_work);.*$//'
plant "a preempted request goes behind later arrivals" engine/scheduler engine/scheduler.hpp 's/insert(waiting_, victim);/waiting_.push_back(victim);/'
plant "rows that decode are not charged to the budget" engine/drafts engine/scheduler.hpp 's/^      --budget_;//'
plant "a sample ends a token too early" engine/run_ahead engine/engine.hpp 's/choice.token, finished, choice.logprob/choice.token, branch.finish, choice.logprob/'
plant "a step is not committed" engine/engine engine/engine.hpp 's/^    plan.commit();//'
plant "all samples read the first one's logits" engine/engine engine/step_input.hpp 's/.logit_row = static_cast<int>(logit_rows_.size())/.logit_row = 0/'
plant "a token is penalised each time it came" engine/sampler engine/sampler.hpp 's/if (count_\[index(token)\]++ > 0) continue;//'
plant "the rest of a text is not told at its end" engine/service engine/service.cpp 's/ + sample.stops.flush();/;/'
plant "who has gone is served on" engine/service engine/service.cpp 's/^    drop_abandoned();$//'
plant "everybody is let in" engine/service engine/service.cpp 's/if (num_waiting >= options_.max_queue) {/if (num_waiting > 1000) {/'
plant "unknown fields are ignored" engine/server/api_request engine/server/api_request.cpp 's/^    refuse_unknown(request_.api, body);$//'
plant "an event has no end" engine/server/api_response engine/server/api_response.cpp 's/return "data: " + std::string(data) + "\\n\\n";/return "data: " + std::string(data) + "\\n";/'

echo "$missed missed"
[[ $missed -eq 0 ]]
