//! Figures as a reader sees them.

use super::view::Figure;

/// A name without line breaks and other control characters, which tables, terminals and XML cannot hold.
pub fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c }).collect()
}

/// Four significant digits; `1.234e6` where that would be long.
pub fn number(value: f64) -> String {
    let (mantissa, exponent) = split(value);
    written(mantissa, None, 3 - magnitude(mantissa), exponent)
}

/// `18.93 ± 0.43`: as many digits as the spread has meaning for.
pub fn figure(figure: Figure) -> String {
    let Figure { value, spread: Some(spread) } = figure else { return number(figure.value) };
    let (mantissa, exponent) = split(value);
    let spread = spread / 10f64.powi(exponent);
    let most = 5 - magnitude(mantissa);
    let decimals = if spread > 0.0 && spread.is_finite() { (1 - magnitude(spread)).min(most) } else { most.min(3) };
    written(mantissa, Some(spread), decimals, exponent)
}

/// The same of a fraction, in percent.
pub fn percent(fraction: Figure) -> String {
    figure(Figure { value: 100.0 * fraction.value, spread: fraction.spread.map(|spread| 100.0 * spread) })
}

/// `38.2 MB`: powers of ten.
pub fn bytes(value: f64) -> String {
    scaled(value, &[(1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B")])
}

/// `4.10 M`.
pub fn count(value: f64) -> String {
    scaled(value, &[(1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, "")])
}

/// `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round();
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    if whole < 100.0 {
        return format!("{whole:.0} s");
    }
    let minutes = (whole / 60.0).round();
    if minutes < 60.0 {
        return format!("{minutes:.0} min");
    }
    format!("{:.0} h {:02.0} min", (minutes / 60.0).floor(), minutes % 60.0)
}

/// A value by how much it is above another, which is to be named next: `5.2 % above`, `12 times`.
pub fn above(value: f64, reference: f64) -> String {
    let ratio = value / reference;
    match 100.0 * (ratio - 1.0) {
        _ if ratio >= 10.0 => format!("{} times", short(ratio)),
        percent if percent >= 0.0 => format!("{} % above", short(percent)),
        percent => format!("{} % below", short(-percent)),
    }
}

/// Two significant digits.
pub fn short(value: f64) -> String {
    let (mantissa, exponent) = split(value);
    written(mantissa, None, 1 - magnitude(mantissa), exponent)
}

/// As few digits as tell it apart: `0.05`, `20`, `1e6`.
pub fn trimmed(value: f64) -> String {
    let (mantissa, exponent) = split(value);
    let text = written(mantissa, None, 4 - magnitude(mantissa), 0);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if exponent == 0 { text.into() } else { format!("{text}e{exponent}") }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let (unit, name) = units.iter().find(|(unit, _)| value >= *unit).or(units.last()).copied().unwrap_or((1.0, ""));
    let scaled = value / unit;
    let decimals = if unit > 1.0 { (2 - magnitude(scaled)).clamp(0, 2) as usize } else { 0 };
    format!("{scaled:.decimals$}{name}")
}

/// A number and the power of ten that stands behind it, 0 for those of usual size.
fn split(value: f64) -> (f64, i32) {
    match magnitude(value) {
        -3..=4 => (value, 0),
        // 10^-310 is no number, so in two steps.
        exponent => (value / 10f64.powi(exponent / 2) / 10f64.powi(exponent - exponent / 2), exponent),
    }
}

/// Of the first significant digit: 0 for 1 to 9, -1 for 0.1 to 0.9; 0 for 0 and what is not finite.
fn magnitude(value: f64) -> i32 {
    if value == 0.0 || !value.is_finite() { 0 } else { value.abs().log10().floor() as i32 }
}

fn written(mantissa: f64, spread: Option<f64>, decimals: i32, exponent: i32) -> String {
    if !mantissa.is_finite() {
        return "not finite".into();
    }
    let decimals = decimals.clamp(0, 8) as usize;
    let number = match spread {
        Some(spread) => format!("{mantissa:.decimals$} ± {spread:.decimals$}"),
        None => format!("{mantissa:.decimals$}"),
    };
    match (exponent, spread) {
        (0, _) => number,
        (_, Some(_)) => format!("({number})e{exponent}"),
        (_, None) => format!("{number}e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (value, text) in [
            (18.934, "18.93"),
            (0.0, "0.000"),
            (1234.5, "1234"),
            (0.01234, "0.01234"),
            (1_234_567.0, "1.235e6"),
            (1.5e-7, "1.500e-7"),
            (5e-324, "4.941e-324"),
            (f64::MAX, "1.798e308"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn figures_with_spreads() {
        for (value, spread, text) in [
            (18.934, Some(0.4321), "18.93 ± 0.43"),
            (18.934, Some(12.3), "19 ± 12"),
            (18.934, None, "18.93"),
            (18.934, Some(0.0), "18.934 ± 0.000"),
            (18.934, Some(1e-12), "18.9340 ± 0.0000"),
            (1_234_567.0, Some(20_000.0), "(1.235 ± 0.020)e6"),
            (0.00002, Some(0.000001), "(2.00 ± 0.10)e-5"),
        ] {
            assert_eq!(figure(Figure { value, spread }), text);
        }
        for (value, text) in [(0.05, "0.05"), (20.0, "20"), (1e6, "1e6"), (2.5, "2.5"), (0.0, "0"), (2e-5, "2e-5")] {
            assert_eq!(trimmed(value), text);
        }
        assert_eq!(percent(Figure::new(0.931, Some(0.002))), "93.10 ± 0.20");
    }

    #[test]
    fn sizes_times_and_ratios() {
        assert_eq!(
            (bytes(38_240_000.0), bytes(512.0), bytes(269e6)),
            ("38.2 MB".into(), "512 B".into(), "269 MB".into())
        );
        assert_eq!((count(4_096_000.0), count(0.0)), ("4.10 M".into(), "0".into()));
        assert_eq!(
            (duration(3.25), duration(95.2), duration(7500.0)),
            ("3.2 s".into(), "95 s".into(), "2 h 05 min".into())
        );
        assert_eq!((above(21.0, 20.0), above(19.0, 20.0)), ("5.0 % above".into(), "5.0 % below".into()));
        assert_eq!(above(2e6, 20.0), "1.0e5 times");
        assert_eq!(plain("a\nb\u{1b}[1m"), "a b [1m");
    }
}
