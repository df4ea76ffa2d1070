//! What flows: progress messages, events, frames of output.

use std::collections::BTreeMap;

wire! {
    /// One line of a pull, a load or a build (moby `jsonmessage`).
    #[serde(rename_all = "camelCase")]
    pub struct JsonMessage {
        /// Text that stands for itself (load, build).
        #[serde(skip_serializing_if = "String::is_empty")]
        pub stream: String,
        /// What is going on.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub status: String,
        /// Numbers of it.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub progress_detail: Option<ProgressDetail>,
        /// The bar as text, for old clients.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub progress: String,
        /// The layer it is about.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub id: String,
        /// The stream ends with a failure.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub error_detail: Option<ErrorDetail>,
        /// The same as text, for old clients.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub error: String,
        /// Anything else.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub aux: Option<serde_json::Value>,
    }

    /// How far it is.
    #[serde(rename_all = "camelCase")]
    pub struct ProgressDetail {
        /// Bytes done.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub current: Option<i64>,
        /// Bytes in all.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub total: Option<i64>,
        /// Not bytes but these.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub units: String,
    }

    /// A failure inside a stream.
    #[serde(rename_all = "camelCase")]
    pub struct ErrorDetail {
        /// Status or exit code.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub code: i64,
        /// For people.
        pub message: String,
    }

    /// One line of `GET /events`.
    pub struct Event {
        /// Legacy: as `action`, for containers and images.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub status: String,
        /// Legacy: as the actor's.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub id: String,
        /// Legacy: the container's image.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub from: String,
        /// `container`, `image`, `network`, `volume`, `daemon`.
        #[serde(rename = "Type")]
        pub kind: String,
        /// `start`, `die` …
        #[serde(rename = "Action")]
        pub action: String,
        /// Who.
        #[serde(rename = "Actor")]
        pub actor: EventActor,
        /// `local`.
        pub scope: String,
        /// Seconds since 1970.
        pub time: i64,
        /// Nanoseconds since 1970.
        #[serde(rename = "timeNano")]
        pub time_nano: i64,
    }

    /// Whom an event is about.
    pub struct EventActor {
        /// Id.
        #[serde(rename = "ID")]
        pub id: String,
        /// Labels and facts.
        #[serde(rename = "Attributes")]
        pub attributes: BTreeMap<String, String>,
    }
}

/// Which stream a frame carries: the first of the eight bytes before it. The
/// others are three zeros and the frame's length in big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Never sent by Docker in practice.
    Stdin = 0,
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// An error of the engine, as text.
    System = 3,
}

impl StreamKind {
    /// The eight bytes before a frame of `length` bytes.
    pub fn header(self, length: u32) -> [u8; 8] {
        let [a, b, c, d] = length.to_be_bytes();
        [self as u8, 0, 0, 0, a, b, c, d]
    }

    /// What a header says; none where it is no header.
    pub fn parse(header: [u8; 8]) -> Option<(Self, u32)> {
        let [kind, 0, 0, 0, a, b, c, d] = header else { return None };
        let kind = match kind {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::System,
            _ => return None,
        };
        Some((kind, u32::from_be_bytes([a, b, c, d])))
    }
}
