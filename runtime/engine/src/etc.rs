//! What a container finds in `/etc` of its names and networks.
//!
//! The files lie in the engine's own directory and are mounted into the container, which
//! may write there whatever it wants.

use std::{net::IpAddr, path::Path};

use knarr_model::{ContainerSpec, NetworkMode};
use knarr_sys::read;

use crate::{Error, Result, container::Container, create::write_public, engine::Engine, oci};

/// No `/etc/hosts` that is of use is larger, in bytes; a container may write anything there.
const ETC_LIMIT: usize = 1 << 20;

impl Engine {
    /// Writes hosts and resolv.conf in place: the container has them mounted.
    pub(crate) fn write_etc(
        &self,
        container: &Container,
        spec: &ContainerSpec,
        endpoints: &[knarr_network::Endpoint],
    ) -> Result<()> {
        let etc = self.directory(&container.id);
        if let NetworkMode::Container(key) = &spec.network_mode {
            // The other's names are right for this one too, with what it wrote there itself.
            let other = self.find(key)?;
            let theirs = self.directory(&other.id);
            let files = ["hosts", "resolv.conf"];
            match files.map(|file| read::bytes(theirs.join(file), ETC_LIMIT)) {
                [Ok(hosts), Ok(resolv)] => {
                    write_public(&etc.join("hosts"), hosts)?;
                    return write_public(&etc.join("resolv.conf"), resolv);
                }
                [hosts, resolv] => {
                    for (file, error) in files.iter().zip([hosts.err(), resolv.err()]) {
                        let Some(error) = error else { continue };
                        tracing::warn!(
                            %error,
                            container = container.id.short(),
                            "cannot take over /etc/{file} of container {}: it is made anew",
                            other.name()
                        );
                    }
                }
            }
            let endpoints = other.facts().endpoints.clone();
            return self.write_own_etc(&etc, other.id.as_str(), &other.spec(), &endpoints);
        }
        self.write_own_etc(&etc, container.id.as_str(), spec, endpoints)
    }

    /// The same from what the engine itself knows of a container.
    fn write_own_etc(
        &self,
        etc: &Path,
        id: &str,
        spec: &ContainerSpec,
        endpoints: &[knarr_network::Endpoint],
    ) -> Result<()> {
        let addresses: Vec<IpAddr> =
            endpoints.iter().filter_map(|endpoint| endpoint.row.ipv4.map(IpAddr::from)).collect();
        let hostname = oci::hostname(id, spec);
        let hosts = self
            .0
            .networks
            .hosts(&knarr_network::HostsFile {
                addresses: &addresses,
                hostname: &hostname,
                domainname: spec.domainname.as_deref(),
                extra: &spec.extra_hosts,
            })
            .map_err(Error::from_room)?;
        let embedded = endpoints.iter().any(|endpoint| !endpoint.dns_names.is_empty());
        let resolv = self.0.networks.resolv_conf(&knarr_network::ResolvConf {
            embedded,
            dns: &spec.dns,
            search: &spec.dns_search,
            options: &spec.dns_options,
        });
        write_public(&etc.join("hosts"), hosts)?;
        write_public(&etc.join("resolv.conf"), resolv)
    }
}
