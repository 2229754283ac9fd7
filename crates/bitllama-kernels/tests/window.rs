//! Keys and values of a layer with a window: what is kept, what is dropped, and what that costs.

use bitllama_kernels::kv::{KvKind, LayerKv, PAGE};

const HEADS: usize = 2;
const HEAD_DIM: usize = 21;
const ROW: usize = HEADS * HEAD_DIM;

/// Keys, or values, of `positions`, which depend on the position alone.
fn rows(positions: std::ops::Range<usize>, salt: usize) -> Vec<f32> {
    positions
        .flat_map(|p| (0..ROW).map(move |i| (((p * ROW + i + salt) * 7919 % 2003) as f32 - 1001.0) * 0.01))
        .collect()
}

fn append(kv: &mut LayerKv, positions: std::ops::Range<usize>) {
    kv.append(&rows(positions.clone(), 0), &rows(positions, 17));
}

/// Panics unless both have the same keys and values at `positions`.
fn assert_same(kv: &LayerKv, all: &LayerKv, positions: std::ops::Range<usize>, what: &str) {
    let (mut got, mut expected) = ([0.0; HEAD_DIM], [0.0; HEAD_DIM]);
    for (head, position) in (0..HEADS).flat_map(|head| positions.clone().map(move |position| (head, position))) {
        kv.key_into(head, position, &mut got);
        all.key_into(head, position, &mut expected);
        assert_eq!(got, expected, "{what}: key of {position}");
        kv.value_into(head, position, &mut got);
        all.value_into(head, position, &mut expected);
        assert_eq!(got, expected, "{what}: value of {position}");
    }
}

#[test]
fn what_new_tokens_see_is_kept_and_the_memory_is_that_of_the_window() {
    for kind in KvKind::ALL {
        for (window, at_once) in [(1, 1), (1, 40), (16, 3), (300, 1), (700, 37), (300, 900)] {
            let what = format!("{kind}, window {window}, {at_once} at a time");
            let mut all = LayerKv::new(kind, HEADS, HEAD_DIM);
            let mut kv = LayerKv::with_window(kind, HEADS, HEAD_DIM, Some(window));
            let mut most = LayerKv::new(kind, HEADS, HEAD_DIM);
            let slack = 256.max(window / 2) + 32;
            most.reserve(2 * (window + slack + at_once) + slack);
            kv.reserve(1 << 40);
            let mut decoding = LayerKv::new(kind, HEADS, HEAD_DIM);
            decoding.reserve(window + 2 * PAGE);
            assert!(kv.bytes() <= decoding.bytes(), "{what}: reserved {}", kv.bytes());
            while all.len() < 4000 {
                let positions = all.len()..all.len() + at_once;
                append(&mut all, positions.clone());
                append(&mut kv, positions.clone());
                assert_eq!(kv.len(), all.len());
                let seen = (positions.start + 1).saturating_sub(window);
                assert!(kv.first() <= seen && seen - kv.first() < slack && kv.first().is_multiple_of(16), "{what}");
                assert!(kv.bytes() <= most.bytes(), "{what}: {} bytes, {} expected", kv.bytes(), most.bytes());
                if positions.start % 7 == 0 || at_once > 1 {
                    assert_same(&kv, &all, seen.max(positions.end.saturating_sub(50))..positions.end, &what);
                    assert_same(&kv, &all, seen..positions.end.min(seen + 20), &what);
                }
            }
            kv.clear();
            assert_eq!((kv.len(), kv.first()), (0, 0));
            append(&mut kv, 0..20);
            assert_same(&kv, &all, 0..20, &what);
        }
    }
}

#[test]
fn memory_of_a_long_prompt_goes_back() {
    for kind in KvKind::ALL {
        let mut kv = LayerKv::with_window(kind, HEADS, HEAD_DIM, Some(64));
        append(&mut kv, 0..10_000);
        assert_eq!(kv.first(), 0, "the prompt's own tokens see all of it");
        let before = kv.bytes();
        append(&mut kv, 10_000..10_001);
        assert!(kv.bytes() * 10 < before, "{kind}: {} of {before} bytes", kv.bytes());
        let mut two_pages = LayerKv::new(kind, HEADS, HEAD_DIM);
        two_pages.reserve(2 * PAGE);
        for position in 10_001..12_000 {
            append(&mut kv, position..position + 1);
            assert!(kv.bytes() <= two_pages.bytes(), "{kind}: {} bytes at {position}", kv.bytes());
        }
    }
}

#[test]
fn a_held_position_can_be_returned_to() {
    for kind in KvKind::ALL {
        let (window, beginning) = (50, 1003);
        let mut all = LayerKv::new(kind, HEADS, HEAD_DIM);
        append(&mut all, 0..4000);
        let mut kv = LayerKv::with_window(kind, HEADS, HEAD_DIM, Some(window));
        append(&mut kv, 0..beginning);
        kv.hold(beginning);
        for len in [3, 1000, 17] {
            for position in beginning..beginning + len {
                append(&mut kv, position..position + 1);
            }
            assert_same(&kv, &all, beginning + len - window.min(len)..beginning + len, "an ending");
            assert!(kv.can_truncate(beginning));
            kv.truncate(beginning);
            assert_eq!(kv.len(), beginning);
            assert_same(&kv, &all, beginning + 1 - window..beginning, "what the next token sees");
        }
        kv.release();
        (beginning..4000).for_each(|position| append(&mut kv, position..position + 1));
        assert!(kv.first() > 3000 && !kv.can_truncate(beginning), "{kind}: nothing is dropped after a release");
        // Without a hold, the length before the last tokens is in reach.
        append(&mut all, 4000..4700);
        append(&mut kv, 4000..4700);
        kv.truncate(4000);
        append(&mut kv, 4000..4700);
        assert_same(&kv, &all, 4650..4700, "after the last tokens were taken back");
    }
}

#[test]
#[should_panic(expected = "position 1000 sees position 951, but those before")]
fn what_is_dropped_cannot_be_returned_to() {
    let mut kv = LayerKv::with_window(KvKind::F32, HEADS, HEAD_DIM, Some(50));
    (0..4000).for_each(|position| append(&mut kv, position..position + 1));
    kv.truncate(1000);
}

#[test]
fn numbers_beyond_f16_stay_as_computed_after_the_first_of_them_is_dropped() {
    let mut kv = LayerKv::with_window(KvKind::F16, HEADS, HEAD_DIM, Some(20));
    let mut all = LayerKv::new(KvKind::F16, HEADS, HEAD_DIM);
    let large = |position: usize| position == 100 || position == 1900;
    for position in 0..2000 {
        let (mut keys, values) = (rows(position..position + 1, 0), rows(position..position + 1, 17));
        keys[3] = if large(position) { 1e6 } else { keys[3] };
        kv.append(&keys, &values);
        all.append(&keys, &values);
    }
    assert!(kv.first() > 100);
    assert_same(&kv, &all, 1900.max(kv.first())..2000, "as without a window");
    let mut key = [0.0; HEAD_DIM];
    kv.key_into(0, 1990, &mut key);
    assert_eq!(key, rows(1990..1991, 0)[..HEAD_DIM], "as computed");
    kv.clear();
    append(&mut kv, 0..1);
    kv.key_into(0, 0, &mut key);
    assert_ne!(key, rows(0..1, 0)[..HEAD_DIM], "halves again");
}

#[test]
fn clones_share_pages_until_one_of_them_writes() {
    for kind in KvKind::ALL {
        let mut all = LayerKv::new(kind, HEADS, HEAD_DIM);
        append(&mut all, 0..1000);
        let mut kv = LayerKv::new(kind, HEADS, HEAD_DIM);
        append(&mut kv, 0..700);
        let alone = kv.bytes();
        assert_eq!(kv.share_of_bytes(), alone as f64);
        let mut others: Vec<LayerKv> = vec![kv.clone(); 3];
        assert_eq!((kv.bytes(), kv.share_of_bytes()), (alone, alone as f64 / 4.0), "{kind}");

        // Each goes on in its own way: to other positions, from an earlier one, or not at all.
        append(&mut kv, 700..1000);
        others[0].truncate(600);
        others[0].append(&rows(0..100, 3), &rows(0..100, 4));
        others[1].truncate(256);
        append(&mut others[1], 256..300);
        assert_same(&kv, &all, 0..1000, "the first one");
        assert_same(&others[0], &all, 0..600, "the beginning of the second one");
        let mut fresh = LayerKv::new(kind, HEADS, HEAD_DIM);
        fresh.append(&rows(0..100, 3), &rows(0..100, 4));
        let (mut got, mut expected) = ([0.0; HEAD_DIM], [0.0; HEAD_DIM]);
        for position in 0..100 {
            others[0].key_into(1, 600 + position, &mut got);
            fresh.key_into(1, position, &mut expected);
            assert_eq!(got, expected, "{kind}: its own key");
        }
        assert_same(&others[1], &all, 0..300, "the third one");
        assert_same(&others[2], &all, 0..700, "the fourth one");

        // The first page has four users, the second one three; the shares of all are all memory.
        let total = kv.share_of_bytes() + others.iter().map(LayerKv::share_of_bytes).sum::<f64>();
        let page = {
            let mut page = LayerKv::new(kind, HEADS, HEAD_DIM);
            page.reserve(PAGE);
            page.bytes() as f64
        };
        // 0 to 255 once, 256 to 511 twice (the third one wrote there), 512 to 767 three times, 768 to 999 once.
        assert_eq!(total.round(), 7.0 * page, "{kind}");
        drop(others);
        assert_eq!(kv.share_of_bytes(), kv.bytes() as f64);
    }
}
