//! TensorBoard's events as bytes: the four messages of `event.proto` and `summary.proto` that a run writes, in Protocol
//! Buffers' wire format. As in proto3, a field that is zero is left out.

/// Content of an event.
pub enum What<'a> {
    /// Version of the file, its first event.
    FileVersion(&'a str),
    /// A process has started: what was written for this step and later ones is void.
    SessionStart,
    /// A number under a tag.
    Scalar(&'a str, f32),
    /// The distribution of many numbers under a tag.
    Histogram(&'a str, &'a Histogram),
}

/// How numbers are distributed.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Smallest number.
    pub min: f64,
    /// Largest number.
    pub max: f64,
    /// Count of numbers.
    pub count: f64,
    /// Sum of the numbers.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_squares: f64,
    /// Upper end of each bucket.
    pub limits: Vec<f64>,
    /// Numbers in each bucket.
    pub counts: Vec<f64>,
}

/// The message `Event`.
pub fn encode(wall_time: f64, step: i64, what: &What) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    if step != 0 {
        tag(&mut event, 2, Wire::Varint);
        varint(&mut event, step as u64);
    }
    match what {
        What::FileVersion(version) => bytes(&mut event, 3, version.as_bytes()),
        What::SessionStart => {
            let mut log = Vec::new();
            tag(&mut log, 1, Wire::Varint);
            varint(&mut log, START);
            bytes(&mut event, 7, &log);
        }
        What::Scalar(name, number) => {
            let mut value = named(name);
            tag(&mut value, 2, Wire::Fixed32);
            value.extend(number.to_le_bytes());
            summary(&mut event, &value);
        }
        What::Histogram(name, histogram) => {
            let mut value = named(name);
            bytes(&mut value, 5, &histogram_proto(histogram));
            summary(&mut event, &value);
        }
    }
    event
}

/// `SessionLog.SessionStatus.START`
const START: u64 = 1;

/// How the bytes of a field end.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// The message `Summary` with one `Summary.Value`, as the field of an event.
fn summary(event: &mut Vec<u8>, value: &[u8]) {
    let mut summary = Vec::new();
    bytes(&mut summary, 1, value);
    bytes(event, 5, &summary);
}

/// The start of a `Summary.Value`.
fn named(name: &str) -> Vec<u8> {
    let mut value = Vec::new();
    bytes(&mut value, 1, name.as_bytes());
    value
}

/// The message `HistogramProto`.
fn histogram_proto(Histogram { min, max, count, sum, sum_squares, limits, counts }: &Histogram) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, number) in (1..).zip([*min, *max, *count, *sum, *sum_squares]) {
        double(&mut out, field, number);
    }
    for (field, numbers) in [(6, limits), (7, counts)] {
        let packed: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes(&mut out, field, &packed);
    }
    out
}

fn double(out: &mut Vec<u8>, field: u32, number: f64) {
    if number != 0.0 {
        tag(out, field, Wire::Fixed64);
        out.extend(number.to_le_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        tag(out, field, Wire::Bytes);
        varint(out, bytes.len() as u64);
        out.extend(bytes);
    }
}

fn tag(out: &mut Vec<u8>, field: u32, wire: Wire) {
    varint(out, u64::from(field << 3 | wire as u32));
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same events by the crates `protobuf` 2.28 and `tensorboard-proto` 0.5.7.
    #[test]
    fn events_are_those_of_the_protobuf_crate() {
        let histogram = Histogram {
            min: -1.0,
            max: 0.0,
            count: 2.0,
            sum: -1.0,
            sum_squares: 1.0,
            limits: vec![-0.5, 0.0],
            counts: vec![1.0, 1.0],
        };
        let events = [
            (0, What::FileVersion("brain.Event:2"), "1a0d627261696e2e4576656e743a32"),
            (11, What::SessionStart, "100b3a020801"),
            (300, What::Scalar("train/loss", 2.5), "10ac022a130a110a0a747261696e2f6c6f73731500002040"),
            (300, What::Scalar("train/loss", 0.0), "10ac022a130a110a0a747261696e2f6c6f73731500000000"),
            (
                4,
                What::Histogram("weights/q", &histogram),
                "10042a570a550a09776569676874732f712a4809000000000000f0bf19000000000000004021000000000000f0bf29000000000000f0\
                 3f3210000000000000e0bf00000000000000003a10000000000000f03f000000000000f03f",
            ),
        ];
        for (step, what, expected) in events {
            let hex: String = encode(1764484000.25, step, &what).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, format!("09000010e8f84ada41{expected}"));
        }
    }
}
