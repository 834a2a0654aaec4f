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
compile=("${CXX:-g++}" -std=c++20 -O1 -include tests/support/assert.hpp -Itests)
"${compile[@]}" -c tests/support/main.cpp -o "$work/main.o"

count=0 missed=0

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
  local verdict=caught
  if [[ $changed -ne 1 ]]; then
    verdict="MISSED: the edit changes $changed lines of $header"
  elif ! "${compile[@]}" "-I$work/include" "-I$work/examples" "tests/${test}_test.cpp" "$work/main.o" -o "$work/test" 2>"$work/errors"; then
    verdict="MISSED: does not compile: $(head -1 "$work/errors")"
  elif { timeout 300 "$work/test"; } >/dev/null 2>&1; then
    verdict="MISSED: tests/${test}_test.cpp stays green"
  fi
  [[ $verdict == caught ]] || missed=$((missed + 1))
  echo "$name: $verdict"
}

plant "a shared tail is written without a copy" cache/model cache/sequence.hpp 's/ref_count(tail) > 1/ref_count(tail) > 2/'
plant "a published tail is written without a copy" cache/model cache/block_allocator.hpp 's/published ? block_size_ : record(id).held_rows/published ? 0 : record(id).held_rows/'
plant "rows that a pending copy reads are written" cache/model cache/block_allocator.hpp 's/published ? block_size_ : record(id).held_rows/published ? block_size_ : 0/'
plant "a copy is one row short" cache/fork cache/sequence.hpp 's/num_rows = size_ % block_size}/num_rows = size_ % block_size - 1}/'
plant "a fork shares the destination of a pending copy" cache/model cache/sequence.hpp 's/table.num_blocks() - 1, copy->source/table.num_blocks() - 1, copy->destination/'
plant "a fork shares uncommitted tokens" cache/model cache/sequence.hpp 's/const int num_tokens = num_committed();/const int num_tokens = size_;/'
plant "the one writer copies rows that are not written yet" cache/model cache/sequence.hpp 's/tail_rows == 0 || size_ > num_committed_/tail_rows == 0/'
plant "truncated rows are still stored" cache/model cache/step_plan.hpp 's/      slot = dead_slot;/      static_cast<void>(slot);/'
plant "a moved sequence forgets its open step" cache/sequence cache/sequence.hpp 's/step_(std::exchange(other.step_, 0))/step_(0)/'
plant "a window drops one block too many" cache/model cache/sequence.hpp 's|const int end = position / table_.block_size();|const int end = ceil_div(position, table_.block_size());|'
plant "commit forgets the holds" cache/model cache/step_plan.hpp 's/for (const BlockCopy& copy : copies_) allocator_->drop_hold(copy.source);//'
plant "a cancelled copy keeps its source" cache/model cache/step_plan.hpp 's/^    allocator_->drop_hold(source);$//'
plant "idle blocks are not counted as available" cache/model cache/block_allocator.hpp 's/wanted > num_available()) return false/wanted > num_free()) return false/'
plant "a double free is not noticed" cache/block_allocator cache/block_allocator.hpp 's/known \&\& record(ids\[i\]).owners > 0/known/'
plant "a refused release keeps what it took" cache/block_allocator cache/block_allocator.hpp 's/for (std::size_t undone = 0;/for (std::size_t undone = i;/'
plant "memory runs out after blocks were taken" cache/out_of_memory cache/step_plan.hpp 's/allocator.reserve_step();//'
plant "memory runs out after a block was published" cache/out_of_memory cache/prefix_cache.hpp 's/tree_.prepare(block);.*$//'
plant "a pool of 2^64 elements has none" storage/kv_layout storage/kv_layout.hpp 's/elements \*= count;//'
plant "blocks are released first to last" cache/block_allocator cache/block_allocator.hpp 's/for (auto id = ids.rbegin(); id != ids.rend(); ++id)/for (auto id = ids.begin(); id != ids.end(); ++id)/'
plant "a hash alone decides a hit" cache/regression cache/prefix_tree.hpp 's/ \&\& std::ranges::equal(tokens_of(id), tokens)//'
plant "the parent does not count in a hit" cache/prefix_tree cache/prefix_tree.hpp 's/ \&\& e.parent == parent//'
plant "the salt does not count in a hit" cache/prefix_cache cache/prefix_scope.hpp 's/append_number(bytes, scope.salt)/append_number(bytes, 0)/'
plant "the last token is hit as well" cache/regression cache/prefix_cache.hpp 's/static_cast<int>(tokens.size()) - 1);/static_cast<int>(tokens.size()));/'
plant "a hit ends inside an image" cache/prefix_cache cache/prefix_cache.hpp 's/end = detail::outside_extras(scope.extras, end);//'
plant "uncommitted blocks are published" cache/regression cache/prefix_cache.hpp 's/sequence.num_committed() \/ block_size/sequence.size() \/ block_size/'
plant "idle hits are counted as available" cache/model cache/prefix_cache.hpp 's/num_available -= allocator_.is_idle(block)/num_available -= 0 * to_index(block)/'
plant "a prefix is evicted before its continuation" cache/model cache/prefix_cache.hpp 's/if (tree_.has_duplicates(entry)) return evict(coldest);/return evict(coldest);/'
plant "idle blocks are kept last in, first out" cache/eviction cache/eviction.hpp 's/BlockId coldest() const { return coldest_; }/BlockId coldest() const { return hottest_; }/'
plant "the columns of a longer sequence stay behind" cache/regression cache/batch_tables.hpp 's/if (num_before > num_blocks) {/if (num_before < num_blocks) {/'
plant "rows follow those of a request that pushed itself out" engine/scheduler engine/scheduler.hpp 's/i = 0; has_room \&\& i < running_/i = 0; i < running_/'
plant "rows of a request that pushed itself out are computed" engine/scheduler engine/scheduler.hpp 's/        work.resize(num_work);.*$//'
plant "a preempted request goes behind later arrivals" engine/scheduler engine/scheduler.hpp 's/waiting_.push_front(victim)/waiting_.push_back(victim)/'
plant "an admission ignores the watermark" engine/scheduler engine/scheduler.hpp 's/: options_.watermark/: 0/'
plant "rows that decode are not charged to the budget" engine/scheduler engine/scheduler.hpp 's/      --budget;//'
plant "a request is thought to fit that never will" engine/scheduler engine/request.hpp 's/return shared + params.width() \* (longest - shared)/return longest/'
plant "equal samples recompute their last token as their trunk" engine/engine engine/request.hpp 's/std::min(std::ssize(a), std::ssize(b)) - 1/std::min(std::ssize(a), std::ssize(b))/'
plant "a step is not committed" engine/engine engine/engine.hpp 's/      plan.commit();//'
plant "all samples read the first one's logits" engine/engine engine/engine.hpp 's/is_first ? 0 : next++/0/'
plant "all samples draw the same numbers" engine/sampler engine/philox.hpp 's/philox({position, sample, 0, 0}/philox({position, 0 * sample, 0, 0}/'
plant "a token is penalised each time it came" engine/sampler engine/sampler.hpp 's/      if (seen_\[i\]) continue;//'
plant "unlikely endings enter the pool of beams" engine/beam engine/beam.hpp 's/ends ? static_cast<int>(rank) >= width_/ends ? false/'
plant "beam search stops at the first ending" engine/beam engine/beam.hpp 's/static_cast<int>(finished_.size()) == width_ \&\& running_/!finished_.empty() \&\& running_/'
plant "a product writes behind the end of its row" engine/gemm engine/gemm.hpp 's/std::min(panel_width, w.rows() - first)/panel_width/'
plant "prefill reads a tile before every warp has fetched its share" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's|__syncthreads();  // this tile|// this tile|'
plant "prefill overwrites what a slower warp still reads" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's|__syncthreads();  // the next|// the next|'
plant "prefill does not wait for its copies" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/cp_async_wait<Config::stages - 2>/cp_async_wait<Config::stages - 1>/'
plant "prefill multiplies values that nobody wrote" cuda/kernels/prefill_sm80 cuda/kernels/paged_rows.cuh 's/(live >> row \& 1u) != 0);/true);/'
plant "prefill sees keys behind the last one" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/tile.keys.contains(key) \&\& variant.visible/variant.visible/'
plant "prefill skips tiles by the latest query alone" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/seen_keys(variant, tile.rows.begin + tile.offset/seen_keys(variant, tile.rows.end - 1 + tile.offset/'
plant "prefill forgets to rescale the output" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/fragment\[2 \* half\] \*= scale;//'
plant "prefill leaves a quad of lanes with different maxima" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/top = max(top, __shfl_xor_sync(~0u, top, 2));//'
plant "prefill writes rows of the next sequence" cuda/kernels/prefill_sm80 cuda/kernels/prefill_sm80.cuh 's/if (row >= tile.rows.end) continue;//'
plant "decode multiplies values that nobody wrote" cuda/kernels/decode_sm80 cuda/kernels/paged_rows.cuh 's/(live \& 1u << row) != 0);/true);/'
plant "decode sees keys behind the last one" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/static_cast<int>(key < item.kv_len) \& //'
plant "decode forgets to rescale the output" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/dims\[octet\]\[i\] \*= scale\[i % 2\];/static_cast<void>(dims[octet][i]);/'
plant "a row's bits depend on the rows beside it" cuda/kernels/decode_sm80 cuda/kernels/decode_sm80.cuh 's/(sums\[octet\]\[1\], k\[1\]/(sums[octet][Config::octets == 1], k[1]/'
plant "decode joins all pieces of a row but its own slice's last" cuda/kernels/decode_sm80 cuda/kernels/decode_merge.cuh 's/slices.owner(row_begin + num_units - 1) - pieces.first_owner + 1;/slices.owner(row_begin + num_units - 1) - pieces.first_owner;/'
plant "ldmatrix meets a bank twice" cuda/tile/swizzle cuda/tile/swizzle.hpp 's|column / chunk ^ row / (8 / permuted) % permuted|column / chunk|'
plant "a tile of keys behind a gap is skipped" cuda/tile/key_tiles cuda/tile/key_tiles.hpp 's/first_meeting(seen.second));/keys.end);/'
plant "a piece is merged at the wrong scale" attention/online_softmax attention/online_softmax.hpp 's/sum += piece.sum \* other/sum += piece.sum/'
plant "an empty row rescales by NaN" attention/online_softmax attention/online_softmax.hpp 's/old == -infinity ? 0.f : exp(old - max)/exp(old - max)/'
plant "NaN is finished into a row without keys" attention/online_softmax attention/online_softmax.hpp 's/if (sum == 0.f)/if (max == -infinity)/'
plant "a window sees one key too many" attention/variants attention/variants.hpp 's/p.query - p.key < window/p.query - p.key <= window/'
plant "a window's tiles begin one key too late" attention/variants attention/variants.hpp 's/0 : query - window + 1/0 : query - window + 2/'
plant "a chain forgets the second piece of its first rule" attention/variants attention/variant.hpp 's/ba = intersect(a.second, b.first),$/ba = ab,/'
plant "a tile of a chain forgets the second piece of its first rule" attention/variants attention/variant.hpp 's/ba = intersect(a.second, b.first), tail/ba = ab, tail/'
plant "a chain names keys between its pieces" attention/chain_keys attention/variant.hpp 's/if (middle.empty()) return {head, tail};//'
plant "a draft sees its siblings" attention/variants attention/variants.hpp 's/return (sees\[.*$/return p.key <= p.query;/'
plant "a tile of queries skips what only its first one sees" attention/variants attention/variant.hpp 's/{earliest.second.begin, latest.second.end}/{latest.second.begin, latest.second.end}/'
plant "the owner of a slice's last unit is the next slice" cuda/kernels/decode_slices cuda/kernels/decode_slices.hpp 's/static_cast<int>(unit \/ size)/static_cast<int>((unit + 1) \/ size)/'
plant "a sequence without keys has no item" attention/plan attention/plan.hpp 's/max(1, ceil_div(kv_len, split_keys))/ceil_div(kv_len, split_keys)/'
plant "offsets are 32 bits wide" cpu/attend_extremes core/view.hpp 's/std::int64_t offset = 0/int offset = 0/'
plant "blocks that are gone are read" cpu/attend_invariance cpu/tile.hpp 's/if (block >= 0 \&\& block < kv.num_blocks()) {/if (block >= 0) {/'
plant "hidden values are multiplied by zero" cpu/attend_extremes cpu/tile.hpp 's/if (weight == 0.f) continue;//'
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

echo "$missed missed"
[[ $missed -eq 0 ]]
