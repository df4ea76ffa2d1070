//! What the host keeps for one instance.

use std::sync::Arc;

use wasmtime::{Engine, Result, Store, StoreContextMut, UpdateDeadline, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{budget::Limits, names::Names, outgoing::Outgoing};

/// Files, sockets, streams and requests that one instance holds.
const MAX_HANDLES: usize = 100_000;

/// State of a component's instance.
pub(crate) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    outgoing: Outgoing,
    /// Who knows the addresses of names.
    pub(crate) names: Arc<Names>,
    /// Its share of the memory.
    pub(crate) limits: Limits,
    /// Told of the time at which guests look up.
    engine: Engine,
    /// It made the host hold more than there is room for.
    over: bool,
}

impl Guest {
    /// A store with an instance's state that has used nothing yet. Its guest looks up at
    /// each tick of the engine's epoch.
    pub(crate) fn store(
        engine: &Engine,
        wasi: WasiCtx,
        outgoing: Outgoing,
        names: Arc<Names>,
        limits: Limits,
    ) -> Store<Self> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let call = limits.budget().division().call;
        let guest = Self {
            wasi,
            http: WasiHttpCtx::new(),
            table,
            outgoing,
            names,
            limits,
            engine: engine.clone(),
            over: false,
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.limits);
        store.set_hostcall_fuel(call);
        store.set_max_component_handles(MAX_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(turn);
        store
    }

    /// At every call of the host: what the guest made it hold must not become so much that
    /// the kernel ends all of the container. Nothing more is given, and at the next loop or
    /// call of its own the guest traps.
    fn look(&mut self) {
        if self.limits.budget().is_over() {
            self.over = true;
            self.table.set_max_capacity(0);
            self.engine.increment_epoch();
        }
    }
}

/// Others have their turn; unless this was the last.
fn turn(context: StoreContextMut<'_, Guest>) -> Result<UpdateDeadline> {
    wasmtime::ensure!(
        !context.data().over,
        "memory limit: it makes its host hold more than the container has room for"
    );
    Ok(UpdateDeadline::Yield(1))
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.look();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.look();
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}
