//! Compiling Wasm ahead of time, in a child process of its own.
//!
//! ```text
//!   an entry that is sound ─────────────────────────────────────────────────────▶ used
//!   missing, or in doubt ─▶ the program's turn ─▶ still so? ─▶ a compiler's turn
//!     module's file ─▶ stdin  knarr-wasm compile  stdout ─▶ a nameless file ─ flush, name, seal
//! ```
//!
//! `<host>` is what `knarr-wasm fingerprint` answers: a hash of wasmtime's
//! version, the CPU's features and the configuration. Another host program or
//! another CPU has another directory, so code is never loaded that was made for
//! something else; what is missing is compiled when it is asked for. Only this
//! room writes here, and never from an image's bytes as they are. knarrd and
//! containerd's shims share the directory: `turns.rs` says who compiles when, and
//! `entry.rs` what is believed.
//!
//! **How it fails.** The child limits its own CPU time and memory; one that is
//! killed for it, or takes longer than [`TIME_MAX`], is `compile limit`. What
//! it says on standard error is the message otherwise. An entry in doubt is a
//! line in the log and is compiled again.
//!
//! Programs that live for one container ask for the fingerprint, too: it is kept in
//! `wasm/host`, and believed for the same host program since the same boot.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use knarr_model::Digest;
use knarr_work::COMPILES;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt, process::Command};

use crate::{
    Error, Result,
    entry::{Code, Entry, Standing},
    turns,
};

/// A busy machine may need minutes for the largest programs.
const TIME_MAX: Duration = Duration::from_secs(300);
/// Where the fingerprint is kept.
const KEPT: &str = "host";
/// What is kept of the child's words.
const WORDS_MAX: u64 = 16 * 1024;

/// The program that compiles: `knarr-wasm`.
#[derive(Debug, Clone)]
pub struct WasmCompiler {
    /// Its path. The children `compile` and `fingerprint` are run with an empty
    /// environment.
    pub program: PathBuf,
}

/// The cache of compiled code.
#[derive(Debug)]
pub struct Compiler {
    program: PathBuf,
    /// `<data root>/wasm`.
    cache: PathBuf,
    fingerprint: Mutex<Option<Fingerprint>>,
}

/// What the host program answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint {
    /// Of which program, since which boot: another processor may follow with the next.
    of: String,
    /// A name of hexadecimal digits.
    host: String,
}

impl Compiler {
    /// The cache beneath a data root.
    pub fn new(compiler: WasmCompiler, data_root: &Path) -> Self {
        Self {
            program: compiler.program,
            cache: data_root.join("wasm"),
            fingerprint: Mutex::default(),
        }
    }

    /// The code of a module for this host, where it is there and what was compiled.
    ///
    /// # Errors
    /// When the host program does not answer, or the cache cannot be read.
    pub async fn ready(&self, module: &Digest) -> Result<Option<Code>> {
        let entry = self.entry(module).await?;
        Ok(self.look(&entry).await?.ok())
    }

    /// The fingerprint of the host, where somebody has asked for it: entries of others are
    /// not run here.
    pub fn host(&self) -> Option<String> {
        let known = self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().map(|known| known.host.clone())
    }

    /// Compiles a module whose bytes are `source`, unless its code is there.
    ///
    /// # Errors
    /// [`Error::Compile`], also for what the host failed at.
    pub async fn compile(&self, module: &Digest, source: File) -> Result<Code> {
        let entry = self.entry(module).await?;
        if let Ok(code) = self.look(&entry).await? {
            return Ok(code);
        }
        let failed = |why: String| Error::Compile { module: *module, why };
        let internal = |error: std::io::Error| failed(error.to_string());
        let late = || {
            let seconds = TIME_MAX.as_secs();
            failed(format!("compile limit: others have been compiling for more than {seconds} s"))
        };
        make_directory(&entry.directory()).map_err(internal)?;
        let until = Instant::now() + TIME_MAX;
        let turn = turns::of_program(&self.cache, module, until).await.map_err(internal)?;
        let _program = turn.ok_or_else(late)?;
        // Somebody else may have compiled it meanwhile.
        match self.look(&entry).await? {
            Ok(code) => return Ok(code),
            Err(Some(doubt)) => {
                tracing::warn!(%module, "the compiled code is not used, and made again: {doubt}");
            }
            Err(None) => {}
        }
        let bytes = source.metadata().map_err(internal)?.len();
        let turn = turns::to_compile(&self.cache, bytes, until).await.map_err(internal)?;
        let _compiler = turn.ok_or_else(late)?;
        let (directory, module) = (entry.directory(), *module);
        let (source, output) =
            blocking(move || prepare(&module, source, &directory)).await.map_err(internal)?;
        self.run(source, &output).await.map_err(failed)?;
        blocking(move || entry.put(output)).await.map_err(internal)
    }

    /// Where a module's code is for this host, and what it must be.
    async fn entry(&self, module: &Digest) -> Result<Entry> {
        let host = self.fingerprint(module).await?;
        let boot = boot().map_err(|error| Error::Internal(format!("read the boot id: {error}")))?;
        Ok(Entry { cache: self.cache.clone(), host, module: *module, boot: boot.to_owned() })
    }

    /// The entry's code, where it is sound; else what is in doubt about it, where it is there.
    async fn look(&self, entry: &Entry) -> Result<std::result::Result<Code, Option<String>>> {
        // Every start comes by here, and three small files are quicker than a thread for
        // them: only code that is to be read waits for its place among others.
        let mut standing = entry.glance();
        if matches!(standing, Ok(Standing::Unread)) {
            let asked = entry.clone();
            standing = blocking(move || asked.standing()).await;
        }
        match standing {
            Ok(Standing::Sound(code)) => Ok(Ok(code)),
            Ok(Standing::Missing | Standing::Unread) => Ok(Err(None)),
            Ok(Standing::Doubtful(why)) => Ok(Err(Some(why))),
            Err(error) => {
                let path = entry.path();
                Err(Error::Internal(format!("read {}: {error}", path.display())))
            }
        }
    }

    /// A file without a name in the cache's directory, for a program on its way here.
    ///
    /// # Errors
    /// Where the directory cannot be made or written.
    pub fn scratch(&self) -> std::io::Result<File> {
        make_directory(&self.cache)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.cache, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(File::from(file))
    }

    async fn run(&self, source: File, output: &File) -> std::result::Result<(), String> {
        let output = output.try_clone().map_err(|e| e.to_string())?;
        let mut child = Command::new(&self.program)
            .arg("compile")
            .env_clear()
            .current_dir("/")
            .stdin(source)
            .stdout(output)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("run {}: {e}", self.program.display()))?;
        // Before the engine that started it, when memory runs out.
        if let Some(pid) = child.id() {
            let _ = knarr_sys::usual_oom_score(pid);
        }
        let mut words = Vec::new();
        let stderr = child.stderr.take();
        let wait = async {
            if let Some(stderr) = stderr {
                let mut limited = stderr.take(WORDS_MAX);
                let _ = limited.read_to_end(&mut words).await;
                // The rest is read and forgotten, so that the child does not block.
                let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
            }
            child.wait().await
        };
        let status = match tokio::time::timeout(TIME_MAX, wait).await {
            Err(_) => return Err(format!("compile limit: more than {} s", TIME_MAX.as_secs())),
            Ok(status) => status.map_err(|e| e.to_string())?,
        };
        match ended(status) {
            Ok(()) => Ok(()),
            Err(end) => {
                let words = String::from_utf8_lossy(&words);
                let words = words.trim();
                Err(if words.is_empty() { end } else { format!("{end}: {words}") })
            }
        }
    }

    async fn fingerprint(&self, module: &Digest) -> Result<String> {
        let failed = |why: String| Error::Compile { module: *module, why };
        let shown = self.program.display();
        let of = self
            .identity()
            .map_err(|e| failed(format!("the Wasm host {shown} cannot be used: {e}")))?;
        let known = self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kept = self.cache.join(KEPT);
        if let Some(known) = known.or_else(|| Fingerprint::read(&kept)).filter(|one| one.of == of) {
            let host = known.host.clone();
            *self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
            return Ok(host);
        }
        let output = Command::new(&self.program)
            .arg("fingerprint")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(30), output)
            .await
            .map_err(|_| failed(format!("{shown} fingerprint does not answer")))?
            .map_err(|e| failed(format!("run {shown}: {e}")))?;
        let host = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || !is_fingerprint(&host) {
            return Err(failed(format!("{shown} fingerprint answers nonsense")));
        }
        let known = Fingerprint { of, host: host.clone() };
        // Without it the next one asks again.
        let _ = known.write(&kept);
        *self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(host)
    }

    /// The host program as it is now.
    fn identity(&self) -> std::io::Result<String> {
        let is = std::fs::metadata(&self.program)?;
        let boot = boot()?;
        Ok(format!("{}:{}:{}.{:09}:{boot}", is.dev(), is.ino(), is.ctime(), is.ctime_nsec()))
    }
}

impl Fingerprint {
    fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(path).ok()?.take(1024).read_to_string(&mut text).ok()?;
        let (of, host) = text.trim_end().split_once(' ')?;
        is_fingerprint(host).then(|| Self { of: of.to_owned(), host: host.to_owned() })
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        make_directory(directory)?;
        let new = path.with_extension(std::process::id().to_string());
        std::fs::write(&new, format!("{} {}\n", self.of, self.host))?;
        std::fs::rename(&new, path)
    }
}

fn is_fingerprint(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// How the child ended, where it was not with success.
fn ended(status: ExitStatus) -> std::result::Result<(), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("exit code {code}")),
        // SIGXCPU, SIGKILL (memory, CPU), SIGABRT (allocation failed), SIGXFSZ.
        (None, Some(signal @ (24 | 9 | 6 | 25))) => Err(format!("compile limit (signal {signal})")),
        (None, signal) => Err(format!("signal {}", signal.unwrap_or(0))),
    }
}

/// Off the thread that serves others.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    COMPILES.run(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// This boot's id.
fn boot() -> std::io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT.get_or_init(|| boot.trim().to_owned()))
}

/// Checks that the bytes are still the module's and opens the output.
fn prepare(module: &Digest, mut source: File, directory: &Path) -> std::io::Result<(File, File)> {
    source.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    if Digest::from_bytes(hash.finalize().into()) != *module {
        return Err(std::io::Error::other("its bytes on the disk have changed"));
    }
    source.seek(SeekFrom::Start(0))?;
    // Without a name until it is whole: a crash leaves nothing.
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let output = File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    Ok((source, output))
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
