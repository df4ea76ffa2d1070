//! Lists of numbers as the kernel writes them: `0-3,7`.

use std::ops::RangeInclusive;

/// The ranges of a list; none where it is no list, or a number is not below `end`.
pub(crate) fn parse(list: &str, end: usize) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < end).then_some(first..=last)
    };
    list.split(',').map(range).collect()
}
