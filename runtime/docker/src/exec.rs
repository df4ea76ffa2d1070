//! Execs.

use crate::{Words, is_zero};

wire! {
    /// Body of `POST /containers/{id}/exec`.
    #[serde(rename_all = "PascalCase")]
    pub struct ExecCreateRequest {
        /// `user[:group]`.
        pub user: String,
        /// All capabilities.
        pub privileged: bool,
        /// A pseudo-terminal.
        pub tty: bool,
        /// Its rows and columns.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub console_size: Option<[u16; 2]>,
        /// The client sends standard input.
        pub attach_stdin: bool,
        /// The client wants standard error.
        pub attach_stderr: bool,
        /// The client wants standard output.
        pub attach_stdout: bool,
        /// The client will not attach.
        pub detach: bool,
        /// Keys that detach.
        pub detach_keys: String,
        /// `NAME=value`.
        pub env: Option<Vec<String>>,
        /// Working directory.
        pub working_dir: String,
        /// Program and arguments.
        pub cmd: Option<Words>,
    }

    /// Answer of `POST /containers/{id}/exec`.
    #[serde(rename_all = "PascalCase")]
    pub struct ExecCreateResponse {
        /// The new exec.
        pub id: String,
    }

    /// Body of `POST /exec/{id}/start`.
    #[serde(rename_all = "PascalCase")]
    pub struct ExecStartRequest {
        /// Nobody attaches.
        pub detach: bool,
        /// As at its creation.
        pub tty: bool,
        /// Rows and columns.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub console_size: Option<[u16; 2]>,
    }

    /// Answer of `GET /exec/{id}/json`.
    #[serde(rename_all = "PascalCase")]
    pub struct ExecInspect {
        /// Exec.
        #[serde(rename = "ID")]
        pub id: String,
        /// It has a process.
        pub running: bool,
        /// None while it runs.
        pub exit_code: Option<i64>,
        /// What was asked.
        pub process_config: ExecProcessConfig,
        /// Standard input is a pipe.
        pub open_stdin: bool,
        /// Standard error is attached.
        pub open_stderr: bool,
        /// Standard output is attached.
        pub open_stdout: bool,
        /// It will be removed.
        pub can_remove: bool,
        /// Container.
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        /// Keys that detach.
        pub detach_keys: String,
        /// On the host; 0 without a process.
        pub pid: i64,
    }

    /// What was asked of an exec.
    pub struct ExecProcessConfig {
        /// A pseudo-terminal.
        pub tty: bool,
        /// The program.
        pub entrypoint: String,
        /// Its arguments.
        pub arguments: Vec<String>,
        /// All capabilities.
        pub privileged: bool,
        /// `user[:group]`.
        #[serde(skip_serializing_if = "is_zero")]
        pub user: String,
    }
}
