//! The forward pass: a task is a block of queries of one group of heads, over all keys that they see.

use rayon::prelude::*;

use super::pack::{Unpack, unpack};
use super::softmax::{Running, Scores, bind, weigh};
use super::{Group, KeyTile, Plan, SCRATCH, Scratch};
use crate::attention::Shared;
use crate::simd::LANES;

pub(super) fn run(plan: &Plan, out: &mut [f32], log_sum_exp: &mut [f32]) {
    let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
    let groups = plan.groups();
    // The last blocks see most: they come first, and the short ones fill up the threads at the end.
    (0..plan.blocks() * groups).into_par_iter().with_max_len(1).for_each(|index| {
        let (block, group) = (plan.blocks() - 1 - index / groups, plan.group(index % groups));
        SCRATCH.with_borrow_mut(|scratch| run_block(plan, group, block, scratch, &out, &log_sum_exp));
    });
}

fn run_block(plan: &Plan, group: Group, block: usize, scratch: &mut Scratch, out: &Shared, log_sum_exp: &Shared) {
    scratch.grow(plan, false);
    let (shared_by, padded, stride) = (plan.shared_by(), plan.padded(), plan.stride());
    let tokens = plan.block(group, block);
    let sights = plan.sights(tokens);
    plan.pack_queries(group, tokens, &mut scratch.queries);
    let Scratch { queries, keys, values, scores, acc, state: [max, sum], .. } = scratch;
    let (scores, acc) = (scores.as_mut_slice(), &mut acc.as_mut_slice()[..plan.queries() * padded]);
    let (max, sum) = (max.as_mut_slice(), sum.as_mut_slice());
    Running { max, sum, acc, width: padded }.clear();

    for tile in sights.first() / plan.tokens..=block {
        let tile = plan.block(group, tile);
        let seen = KeyTile { position: tile.position, len: tile.len };
        plan.pack_keys(group, tile, keys, values);
        plan.cross(&sights, &seen, keys.as_slice(), queries.transposed.as_slice(), scores);
        for (index, sight) in sights.groups().iter().enumerate() {
            let keys = sight.keys(tile.position, tile.len);
            if keys.is_empty() {
                continue;
            }
            let query = index * shared_by * LANES;
            let mut scores = Scores {
                data: &mut scores[keys.start * stride + query..],
                stride,
                vectors: shared_by,
                position: tile.position + keys.start,
                keys: keys.len(),
            };
            if let Some(cap) = plan.shape.cap {
                bind(plan.isa, &mut scores, cap);
            }
            let (max, sum) = (&mut max[query..], &mut sum[query..]);
            let running = Running { max, sum, acc: &mut acc[query * padded..], width: padded };
            weigh(plan.isa, scores, sight, running);
        }
        plan.gather(&sights, &seen, scores, values.as_slice(), acc, true);
    }

    for token in 0..tokens.len {
        for head in 0..shared_by {
            let query = (token / LANES * shared_by + head) * LANES + token % LANES;
            let at = (group.batch * plan.shape.heads + group.head * shared_by + head) * plan.shape.seq;
            // SAFETY: a query belongs to one task.
            let to = unsafe { log_sum_exp.part(at + tokens.position + token, 1) };
            to[0] = max[query] + sum[query].ln();
            sum[query] = 1.0 / sum[query];
        }
    }
    let how = Unpack { add: false, scale: sum, back: None };
    // SAFETY: as above.
    unsafe { unpack(plan.isa, acc, plan.out_at(group), tokens, how, out) };
}
