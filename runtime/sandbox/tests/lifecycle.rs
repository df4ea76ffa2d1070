//! A container's life, from outside.

mod common;

use common::{Fixture, cgroup_left, pipes};
use knarr_sandbox::{Failure, Stdio};
use serde_json::json;

#[test]
fn a_program_runs_and_its_output_and_code_come_back() {
    let fixture = Fixture::script("echo out; echo err >&2; exit 7");
    let outcome = fixture.run();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(outcome.status.code, 7);
    assert_eq!(cgroup_left(&fixture.id), Vec::<std::path::PathBuf>::new());
}
