//! Names for containers that were given none: an adjective and a thing of ships.

use rustix::rand::{GetRandomFlags, getrandom};

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "ample", "apt", "autumn", "azure", "bold", "brave", "breezy",
    "bright", "brisk", "calm", "candid", "cheery", "clear", "clever", "coastal", "cosy", "crisp",
    "daring", "deft", "eager", "early", "earnest", "easy", "fair", "fearless", "fleet", "fond",
    "frank", "free", "fresh", "gallant", "gentle", "glad", "golden", "grand", "hardy", "hearty",
    "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "merry", "mild",
    "modest", "neat", "nimble", "noble", "northern", "patient", "placid", "plucky", "polished",
    "proud", "quick", "quiet", "rapid", "ready", "robust", "rugged", "salty", "serene", "sharp",
    "silver", "sleek", "smart", "snug", "solid", "southern", "spry", "stable", "staunch", "steady",
    "stern", "stout", "sturdy", "sunny", "swift", "tidal", "tidy", "trim", "trusty", "upbeat",
    "valiant", "vivid", "warm", "western", "willing", "wise", "witty", "zesty",
];

const NOUNS: &[&str] = &[
    "anchor",
    "astrolabe",
    "ballast",
    "barge",
    "barque",
    "beacon",
    "bilge",
    "binnacle",
    "bosun",
    "bow",
    "bowsprit",
    "breaker",
    "brig",
    "bulkhead",
    "buoy",
    "cabin",
    "canoe",
    "capstan",
    "captain",
    "caravel",
    "cargo",
    "carrack",
    "catamaran",
    "chart",
    "clipper",
    "coaster",
    "cog",
    "compass",
    "coracle",
    "corvette",
    "coxswain",
    "current",
    "cutter",
    "deck",
    "dhow",
    "dinghy",
    "dory",
    "drifter",
    "ferry",
    "fjord",
    "flagship",
    "fluyt",
    "foresail",
    "frigate",
    "galleon",
    "galley",
    "halyard",
    "harbour",
    "hawser",
    "helm",
    "hold",
    "hull",
    "jetty",
    "jib",
    "junk",
    "kayak",
    "keel",
    "ketch",
    "knot",
    "lagoon",
    "lantern",
    "lateen",
    "lifeboat",
    "lighter",
    "lighthouse",
    "lodestar",
    "longship",
    "lugger",
    "mainsail",
    "mast",
    "mate",
    "mooring",
    "navigator",
    "oar",
    "packet",
    "pilot",
    "pinnace",
    "porthole",
    "prow",
    "quay",
    "raft",
    "rigging",
    "rudder",
    "sailor",
    "schooner",
    "sextant",
    "sheet",
    "shoal",
    "skiff",
    "skipper",
    "sloop",
    "spar",
    "spinnaker",
    "steamer",
    "stern",
    "tender",
    "tide",
    "tiller",
    "trawler",
    "tug",
    "wake",
    "wharf",
    "windlass",
    "xebec",
    "yacht",
    "yawl",
];

/// Bytes from the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Up to 256 bytes come at once and without interruption (getrandom(2)).
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    bytes
}

/// A name such as `brave_keel`; a digit is added from the given attempt on.
pub(crate) fn pick(attempt: u32) -> String {
    let [a, b, c, d, e] = random::<5>();
    let index =
        |high: u8, low: u8, length: usize| usize::from(u16::from_be_bytes([high, low])) % length;
    let adjective = ADJECTIVES[index(a, b, ADJECTIVES.len())];
    let noun = NOUNS[index(c, d, NOUNS.len())];
    if attempt < 2 { format!("{adjective}_{noun}") } else { format!("{adjective}_{noun}{e}") }
}

#[cfg(test)]
mod tests {
    use knarr_model::Name;

    use super::*;

    #[test]
    fn every_word_makes_a_valid_name() {
        for adjective in ADJECTIVES {
            for noun in NOUNS {
                assert!(format!("{adjective}_{noun}").parse::<Name>().is_ok());
            }
        }
        assert!(pick(0).parse::<Name>().is_ok());
        assert!(pick(7).parse::<Name>().is_ok());
    }
}
