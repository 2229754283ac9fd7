//! Python's `strftime` of a date without a zone, as `datetime.now()` is one.

use std::fmt::Write;

use chrono::format::{Item, StrftimeItems};
use chrono::{Local, NaiveDateTime};

/// The date and time of the clock on the wall.
pub fn now() -> NaiveDateTime {
    Local::now().naive_local()
}

/// `now` in `format`, or `None` where Python and this crate have no common meaning of it.
pub fn strftime(now: NaiveDateTime, format: &str) -> Option<String> {
    let format = as_chrono(format);
    let items: Vec<Item<'_>> = StrftimeItems::new(&format).collect();
    if items.contains(&Item::Error) {
        return None;
    }
    let mut out = String::new();
    write!(out, "{}", now.format_with_items(items.into_iter())).ok()?;
    Some(out)
}

/// `format` with the directives that mean something else to `chrono`: microseconds, and the zone, of which there is none.
fn as_chrono(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        match (c, if c == '%' { characters.next() } else { None }) {
            ('%', Some('f')) => out.push_str("%6f"),
            ('%', Some('z' | 'Z')) => {}
            ('%', Some(directive)) => out.extend(['%', directive]),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_mean_what_they_mean_in_python() {
        let now =
            chrono::NaiveDate::from_ymd_opt(2024, 3, 7).and_then(|day| day.and_hms_micro_opt(15, 4, 5, 67)).unwrap();
        let text = |format| strftime(now, format);
        assert_eq!(text("%d %b %Y").unwrap(), "07 Mar 2024");
        assert_eq!(text("%A, %B %-d, %y; %e %j").unwrap(), "Thursday, March 7, 24;  7 067");
        assert_eq!(text("%Y-%m-%dT%H:%M:%S.%f%z").unwrap(), "2024-03-07T15:04:05.000067");
        assert_eq!(text("%I:%M %p%Z %% ü").unwrap(), "03:04 PM % ü");
        assert_eq!(text("%!"), None);
        assert_eq!(text("%"), None);
    }

    #[test]
    fn the_clock_on_the_wall_is_past_the_making_of_this_test() {
        assert!(strftime(now(), "%Y").unwrap().as_str() >= "2026");
    }
}
