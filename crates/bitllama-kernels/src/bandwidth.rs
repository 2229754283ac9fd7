//! How fast this machine reads memory: what bounds decoding, where every weight is read once a token.

use crate::isa::Isa;
use crate::pool::Pool;
use std::fs;
use std::hint::black_box;
use std::time::Instant;

/// The unit of all loads: a cache line, and a register of AVX-512.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Bytes that one task reads: enough that taking it costs nothing beside.
const TASK_BYTES: [usize; 2] = [1 << 20, 4 << 20];

/// Bytes that one pass reads at least; a smaller buffer is read several times over.
const PASS_BYTES: usize = 64 << 20;

/// Memory that is there to be read, from front to back.
#[derive(Debug)]
pub struct Stream {
    buffer: Vec<Line>,
}

impl Stream {
    /// `bytes` of memory. As many as [`streaming_bytes`] says make [`Stream::read`] give the bandwidth of memory, few that
    /// of the caches they fit into.
    ///
    /// # Panics
    /// If memory for the buffer cannot be had.
    pub fn new(pool: &Pool, bytes: usize) -> Self {
        let mut buffer = vec![Line([0; 8]); bytes.div_ceil(size_of::<Line>()).max(1)];
        // A page that was never written is the one page of zeros.
        pool.for_each_chunk(&mut buffer, TASK_BYTES[0] / size_of::<Line>(), |i, lines| lines.fill(Line([i as u64; 8])));
        Self { buffer }
    }

    /// The bytes/s at which the threads of `pool` together read it once, or several times where it is small.
    pub fn read(&self, pool: &Pool) -> f64 {
        let (isa, bytes) = (Isa::current(), size_of_val(&*self.buffer));
        let task = (bytes / (16 * pool.threads())).clamp(TASK_BYTES[0], TASK_BYTES[1]) / size_of::<Line>();
        let chunks = self.buffer.len().div_ceil(task);
        // A task has a chunk, or a buffer that is less than one several times.
        let repeats = (task / self.buffer.len()).max(1);
        let passes = PASS_BYTES.div_ceil(bytes * repeats);
        let start = Instant::now();
        pool.for_each(passes * chunks, |i| {
            let first = i % chunks * task;
            for _ in 0..repeats {
                black_box(sum(isa, &self.buffer[first..self.buffer.len().min(first + task)]));
            }
        });
        (passes * repeats * bytes) as f64 / start.elapsed().as_secs_f64()
    }

    /// Reads it `passes` times, after once to warm up: the bytes/s of each. A few of these beside what is being timed say what
    /// memory gave meanwhile, which other programs on the machine change from second to second.
    pub fn probe(&self, pool: &Pool, passes: usize) -> Vec<f64> {
        self.read(pool);
        (0..passes).map(|_| self.read(pool)).collect()
    }
}

/// Bytes to read for the bandwidth of memory: four times the last cache, at least 256 MiB, at most a quarter of the
/// memory that is free (256 MiB where the system does not tell).
pub fn streaming_bytes() -> usize {
    let cache = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let cache = cache.ok().and_then(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok()).unwrap_or(0) << 10;
    let wanted = (4 * cache).max(256 << 20);
    match available_memory() {
        Some(free) => wanted.min(free / 4),
        None => 256 << 20,
    }
}

/// Bytes that the system can give without swapping, where Linux tells.
pub fn available_memory() -> Option<usize> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<usize>().ok()? << 10)
}

/// The sum of the words of `lines`, whose only point is that every word is loaded.
fn sum(isa: Isa, lines: &[Line]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::current` names only what the processor has.
        Isa::Avx512 => unsafe { sum_avx512(lines) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe { sum_avx2(lines) },
        _ => sum_lines(lines),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(lines: &[Line]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    let (blocks, rest) = lines.as_chunks::<8>();
    for block in blocks {
        for (sum, line) in sums.iter_mut().zip(block) {
            // SAFETY: a line is 64 bytes, aligned.
            *sum = _mm512_add_epi64(*sum, unsafe { _mm512_load_si512((&raw const *line).cast()) });
        }
    }
    sums.into_iter().fold(sum_lines(rest), |all, sum| all.wrapping_add(_mm512_reduce_add_epi64(sum) as u64))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(lines: &[Line]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 8];
    let (blocks, rest) = lines.as_chunks::<4>();
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: four lines are eight aligned registers.
            let words = unsafe { _mm256_load_si256((&raw const *block).cast::<__m256i>().add(i)) };
            *sum = _mm256_add_epi64(*sum, words);
        }
    }
    let sum = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_add_epi64(all, sum));
    // SAFETY: both are 32 bytes without padding, and every value of them is valid.
    let words: [u64; 4] = unsafe { std::mem::transmute(sum) };
    words.into_iter().fold(sum_lines(rest), u64::wrapping_add)
}

fn sum_lines(lines: &[Line]) -> u64 {
    let mut sums = [0u64; 8];
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line.0) {
            *sum = sum.wrapping_add(word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_read_all_words() {
        for len in [0, 1, 7, 8, 9, 67] {
            let mut next = 1u64;
            let mut word = || {
                next = next.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(7);
                next
            };
            let lines: Vec<_> = (0..len).map(|_| Line(std::array::from_fn(|_| word()))).collect();
            for isa in Isa::available() {
                assert_eq!(sum(isa, &lines), sum_lines(&lines), "{isa}, {len} lines");
            }
        }
    }

    #[test]
    fn any_size_has_a_bandwidth() {
        let pool = Pool::new(2);
        for bytes in [0, 1000, 100_000, 3 << 20] {
            let speeds = Stream::new(&pool, bytes).probe(&pool, 2);
            assert!(
                speeds.len() == 2 && speeds.iter().all(|speed| speed.is_finite() && *speed > 1e8),
                "{bytes}: {speeds:?}"
            );
        }
        assert!(streaming_bytes() > 1 << 20);
    }
}
