//! Volumes: named, anonymous, bind and tmpfs; copy-up.
