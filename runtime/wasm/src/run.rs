//! `knarr-wasm run`: one command, from its first call to its exit code.
//!
//! ```text
//! inherit -> grants -> load code -> instantiate -> call -> exit code
//!                                        |            |
//!                                       126     134 (trap) | guest's | 128+n
//! ```

use knarr_model::WasmAbi;
use wasmtime::{Engine, Linker, Result, Store, WasmBacktrace, error::Context as _};
use wasmtime_wasi::{I32Exit, p1::WasiP1Ctx};

use crate::{
    body::Fate,
    budget::{Budget, Division, Limits},
    calls,
    confine::confine,
    engine::{self, Kind},
    grants::{Files, Grants, Launch, Stdin},
    guest::Guest,
    inherited::{Code, Gate, Inherited},
    names, signals,
};

/// The program cannot be started.
const CANNOT_START: u8 = 126;
/// The program trapped: what a native program's SIGABRT ends in.
const TRAPPED: u8 = 134;

/// Runs a command; the code that the process is to exit with.
pub(crate) fn run() -> Result<u8> {
    let inherited = Inherited::take()?;
    let (text, code) = inherited.launch()?;
    let launch = Launch::parse(&text)?;
    code.is(launch.launch.identity.as_ref())?;
    let budget = Budget::new(Division::alone(launch.launch.memory));
    let abi = launch.launch.abi;
    let gate = Gate::take(launch.gate)?;
    let descriptors = launch.descriptors;
    let mut grants = launch.grants(Files::Here, Stdin::Inherited)?;
    confine(&grants.take_trees(), grants.ports(), descriptors)?;
    signals::on_ending(|signal| signals::exit(signal)).context("cannot wait for signals")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let ended = match abi {
        WasmAbi::Preview1Command => runtime.block_on(module(code, gate, &grants, &budget)),
        WasmAbi::ComponentCommand => runtime.block_on(component(code, gate, &grants, &budget)),
        WasmAbi::HttpProxy => wasmtime::bail!("an HTTP component is served, not run"),
    };
    // A file call that never returns must not hold up the end.
    runtime.shutdown_background();
    ended
}

struct Preview1 {
    wasi: WasiP1Ctx,
    limits: Limits,
}

async fn module(
    code: Code,
    gate: Gate,
    grants: &Grants,
    budget: &std::sync::Arc<Budget>,
) -> Result<u8> {
    let engine = engine::running(Kind::Module, budget.division(), None)?;
    let module = code.module(&engine)?;
    let mut linker: Linker<Preview1> = Linker::new(&engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state| &mut state.wasi)?;
    // wasmtime's own refuses 126 and up; Linux keeps the lowest eight bits.
    linker.allow_shadowing(true).func_wrap(
        "wasi_snapshot_preview1",
        "proc_exit",
        |code: i32| -> Result<()> { Err(I32Exit(code).into()) },
    )?;
    let wasi = grants.preview1(budget.division().call);
    let mut store = Store::new(&engine, Preview1 { wasi, limits: Limits::alone(budget) });
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(budget.division().call);
    module.initialize_copy_on_write_image()?;
    calls::confine_guest(grants.ports().is_some())?;
    gate.wait()?;
    let start = async {
        let instance = linker.instantiate_async(&mut store, &module).await?;
        instance.get_typed_func::<(), ()>(&mut store, "_start")
    };
    let start = match start.await {
        Ok(start) => start,
        Err(error) => return Ok(not_started(&error)),
    };
    Ok(match start.call_async(&mut store, ()).await {
        Ok(()) => 0,
        Err(error) => ended(&error),
    })
}

async fn component(
    code: Code,
    gate: Gate,
    grants: &Grants,
    budget: &std::sync::Arc<Budget>,
) -> Result<u8> {
    let engine = engine::running(Kind::Component, budget.division(), None)?;
    let component = code.component(&engine)?;
    let linker = linker(&engine)?;
    // Nothing shares the process: no turns to take, so nothing moves the epoch but a guest
    // that has more than its share, and signals end it.
    let mut store = Guest::store(
        &engine,
        grants.context(budget.division().call),
        grants.outgoing(&Fate::default()),
        grants.names(),
        Limits::alone(budget),
    );
    component.initialize_copy_on_write_image()?;
    calls::confine_guest(grants.ports().is_some())?;
    gate.wait()?;
    let command =
        wasmtime_wasi::p2::bindings::Command::instantiate_async(&mut store, &component, &linker);
    let command = match command.await {
        Ok(command) => command,
        Err(error) => return Ok(not_started(&error)),
    };
    Ok(match command.wasi_cli_run().call_run(&mut store).await {
        Ok(Ok(())) => 0,
        Ok(Err(())) => 1,
        Err(error) => ended(&error),
    })
}

/// Everything a WASI 0.2 component may import here; what it may do with it is
/// the grants' to say.
pub(crate) fn linker(engine: &Engine) -> Result<wasmtime::component::Linker<Guest>> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(&mut linker)?;
    command_interfaces(&mut linker)?;
    names::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// What a command imports beside the interfaces of a proxy, but for name lookup: each by
/// itself, because all of them at once bring the C library's resolver along.
fn command_interfaces(linker: &mut wasmtime::component::Linker<Guest>) -> Result<()> {
    use wasmtime_wasi::{
        cli::{WasiCli, WasiCliView},
        filesystem::{WasiFilesystem, WasiFilesystemView},
        p2::bindings::{LinkOptions, cli, filesystem, random, sockets},
        random::{WasiRandom, WasiRandomView},
        sockets::{WasiSockets, WasiSocketsView},
    };
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, Guest::filesystem)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, Guest::filesystem)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, Guest::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, Guest::random)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::environment::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, Guest::cli)?;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, Guest::sockets)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, Guest::sockets)?;
    sockets::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, Guest::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, Guest::sockets)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, Guest::sockets)?;
    sockets::network::add_to_linker::<_, WasiSockets>(
        linker,
        &(&LinkOptions::default()).into(),
        Guest::sockets,
    )?;
    Ok(())
}

fn not_started(error: &wasmtime::Error) -> u8 {
    if error.downcast_ref::<I32Exit>().is_some() || error.is::<wasmtime::Trap>() {
        // A start function of the module ran and ended the program.
        return ended(error);
    }
    eprintln!("knarr-wasm: the program cannot be started: {error:#}");
    CANNOT_START
}

fn ended(error: &wasmtime::Error) -> u8 {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return (code & 0xff) as u8;
    }
    eprintln!("{}", trapped(error));
    TRAPPED
}

/// Why and where a guest trapped.
pub(crate) fn trapped(error: &wasmtime::Error) -> String {
    let mut text = format!("knarr-wasm: the program trapped: {}", error.root_cause());
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        for (number, frame) in backtrace.frames().iter().enumerate() {
            let name = match frame.func_name() {
                Some(name) => name.to_owned(),
                None => format!("function {}", frame.func_index()),
            };
            text.push_str(&format!("\n  {number}: {name}"));
        }
    }
    text
}
