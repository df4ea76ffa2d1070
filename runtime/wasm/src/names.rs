//! `wasi:sockets/ip-name-lookup`, and whom it asks.
//!
//! wasmtime's own asks the C library, which reads files of the root directory
//! to learn what to load into the process. This one reads the container's hosts
//! file and resolv.conf as data, and asks the name servers from the container's
//! own network.

use std::{
    fs::File,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    vec,
};

use knarr_resolver::{Error, Resolver};
use tokio::sync::Semaphore;
use wasmtime::{
    Result, StoreContextMut,
    component::{Linker, Resource, ResourceType},
};
use wasmtime_wasi::{
    WasiView as _,
    p2::{
        DynPollable, Network, Pollable,
        bindings::sockets::network::{ErrorCode, IpAddress},
        subscribe,
    },
    runtime::{AbortOnDropJoinHandle, poll_noop, spawn},
};

use crate::guest::Guest;

/// The interface, in the version that wasmtime-wasi has of its neighbours.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";
/// Names that a container looks up at once; others wait. Each takes two sockets.
const AT_ONCE: usize = 64;

/// Names for all instances of a container.
#[derive(Debug)]
pub(crate) struct Names {
    resolver: Resolver,
    granted: bool,
    turns: Semaphore,
}

impl Names {
    /// By the container's own files; `granted` is for the guest's own questions.
    pub(crate) fn new(hosts: Option<File>, resolv_conf: Option<File>, granted: bool) -> Arc<Self> {
        let resolver = Resolver::of(hosts, resolv_conf);
        Arc::new(Self { resolver, granted, turns: Semaphore::new(AT_ONCE) })
    }

    /// The addresses of a host, or the one that the text is.
    pub(crate) async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        // Closed never.
        let _turn = self.turns.acquire().await.map_err(|_| Error::Unavailable)?;
        self.resolver.lookup(host).await
    }
}

/// A question of the guest's, and its answer.
enum Lookup {
    Asking(AbortOnDropJoinHandle<Result<Vec<IpAddr>, Error>>),
    Answered(Result<vec::IntoIter<IpAddr>, ErrorCode>),
}

fn answered(answer: Result<Vec<IpAddr>, Error>) -> Lookup {
    Lookup::Answered(answer.map(Vec::into_iter).map_err(|error| match error {
        Error::Invalid => ErrorCode::InvalidArgument,
        Error::NotFound => ErrorCode::NameUnresolvable,
        Error::Unavailable => ErrorCode::TemporaryResolverFailure,
    }))
}

impl Lookup {
    /// Asks for a name as a guest may write it: in any script, or an address.
    fn of(names: &Arc<Names>, name: &str) -> Result<Self, ErrorCode> {
        if !names.granted {
            return Err(ErrorCode::PermanentResolverFailure);
        }
        let host = match url::Host::parse(name) {
            Ok(url::Host::Domain(domain)) => domain,
            Ok(url::Host::Ipv4(address)) => return Ok(answered(Ok(vec![address.into()]))),
            Ok(url::Host::Ipv6(address)) => return Ok(answered(Ok(vec![address.into()]))),
            // That parser knows IPv6 addresses in brackets only.
            Err(_) => match name.parse::<Ipv6Addr>() {
                Ok(address) => return Ok(answered(Ok(vec![address.into()]))),
                Err(_) => return Err(ErrorCode::InvalidArgument),
            },
        };
        let names = Arc::clone(names);
        Ok(Self::Asking(spawn(async move { names.lookup(&host).await })))
    }

    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        if let Self::Asking(asking) = self {
            match poll_noop(std::pin::Pin::new(asking)) {
                Some(answer) => *self = answered(answer),
                None => return Err(ErrorCode::WouldBlock),
            }
        }
        match self {
            Self::Asking(_) => Err(ErrorCode::WouldBlock),
            Self::Answered(Ok(addresses)) => {
                Ok(addresses.next().map(|address| address.to_canonical().into()))
            }
            Self::Answered(Err(code)) => Err(*code),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Self::Asking(asking) = self {
            *self = answered(asking.await);
        }
    }
}

/// Adds the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> Result<()> {
    type Store<'a> = StoreContextMut<'a, Guest>;
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<Lookup>(),
        |mut store: Store<'_>, rep| {
            store.data_mut().ctx().table.delete(Resource::<Lookup>::new_own(rep))?;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store: Store<'_>, (network, name): (Resource<Network>, String)| {
            let guest = store.data_mut();
            guest.ctx().table.get(&network)?;
            let asked = Lookup::of(&guest.names, &name);
            Ok((match asked {
                Ok(lookup) => Ok(guest.ctx().table.push(lookup)?),
                Err(code) => Err(code),
            },))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: Store<'_>, (lookup,): (Resource<Lookup>,)| {
            let lookup: &mut Lookup = store.data_mut().ctx().table.get_mut(&lookup)?;
            Ok((lookup.next(),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Store<'_>,
         (lookup,): (Resource<Lookup>,)|
         -> Result<(Resource<DynPollable>,)> {
            Ok((subscribe(store.data_mut().ctx().table, lookup)?,))
        },
    )?;
    Ok(())
}
