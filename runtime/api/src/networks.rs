//! Networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use axum::{
    body::Body,
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use knarr_docker::{
    Ipam, IpamConfig, NetworkConnectRequest, NetworkContainer, NetworkCreateRequest,
    NetworkCreateResponse, NetworkDisconnectRequest, NetworksPruned,
};
use knarr_model::Subnet4;
use knarr_network::{Network, NetworkSpec};

use crate::{
    Api,
    error::{ApiError, Result, short},
    events::until_filter,
    filters::{Filters, name_matches},
    gate::{json, json_with},
    query::{self, Query},
    render, request,
};

/// `GET /networks`.
pub(crate) async fn list(State(api): State<Api>, query: Query) -> Result<Response> {
    let known = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];
    let filters = Filters::parse(query.text("filters"), &known)?;
    let dangling = filters.truth("dangling")?;
    for kind in filters.get("type") {
        if !["builtin", "custom"].contains(&kind.as_str()) {
            return Err(ApiError::invalid(format!("invalid filter: 'type'='{}'", short(kind))));
        }
    }
    let used: BTreeSet<String> = match dangling {
        Some(_) => {
            api.engine.list().into_iter().flat_map(|view| view.endpoints.into_keys()).collect()
        }
        None => BTreeSet::new(),
    };
    let mut rows = Vec::new();
    for network in api.engine.ask_networks(knarr_network::Networks::list).await?? {
        let row = &network.row;
        let fits = filters.any("name", |pattern| name_matches(pattern, &row.name))
            && filters.any("id", |prefix| row.id.as_str().starts_with(prefix.as_str()))
            && filters.is("driver", &row.driver)
            && filters.is("scope", "local")
            && filters.is("type", if network.is_predefined() { "builtin" } else { "custom" })
            && filters.labels(|key| row.labels.get(key).map(String::as_str))
            && dangling
                .is_none_or(|want| want == (!network.is_predefined() && !used.contains(&row.name)));
        if fits {
            // Docker's list leaves the containers out.
            rows.push(knarr_docker::Network {
                containers: BTreeMap::new(),
                ..network_row(&network)
            });
        }
    }
    Ok(json(&rows))
}

fn network_row(network: &Network) -> knarr_docker::Network {
    let row = &network.row;
    let config = row.subnet.map(|subnet| IpamConfig {
        subnet: subnet.to_string(),
        ip_range: row.ip_range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: row.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        aux_addresses: Some(
            row.aux_addresses.iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect(),
        )
        .filter(|addresses: &BTreeMap<_, _>| !addresses.is_empty()),
    });
    let containers = network.endpoints.iter().map(|end| {
        let bits = end.subnet.map_or(32, |subnet| subnet.prefix());
        let container = NetworkContainer {
            name: end.row.name.clone(),
            endpoint_id: end.row.id.clone(),
            mac_address: end.row.mac.clone(),
            ipv4_address: end.row.ipv4.map(|ip| format!("{ip}/{bits}")).unwrap_or_default(),
            ipv6_address: String::new(),
        };
        (end.row.container.to_string(), container)
    });
    knarr_docker::Network {
        name: row.name.clone(),
        id: row.id.to_string(),
        created: row.created.clone(),
        scope: "local".into(),
        driver: row.driver.clone(),
        enable_ipv4: true,
        enable_ipv6: false,
        ipam: Ipam {
            driver: "default".into(),
            options: None,
            config: Some(config.into_iter().collect()),
        },
        internal: row.internal,
        attachable: row.attachable,
        containers: containers.collect(),
        options: Some(row.options.clone()),
        labels: Some(row.labels.clone()),
        ..knarr_docker::Network::default()
    }
}

/// `GET /networks/{id}`.
pub(crate) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    if query.text("scope").is_some_and(|scope| scope != "local") {
        return Err(ApiError::not_found(format!("network {} not found", short(&id))));
    }
    let network = api.engine.ask_networks(move |networks| networks.inspect(&id)).await??;
    Ok(json(&network_row(&network)))
}

/// `POST /networks/create`.
pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let asked: NetworkCreateRequest = query::json(&headers, body).await?;
    let network = api.engine.create_network(spec(asked)?).await?;
    let answer = NetworkCreateResponse { id: network.row.id.to_string(), warning: String::new() };
    Ok(json_with(StatusCode::CREATED, &answer))
}

fn spec(asked: NetworkCreateRequest) -> Result<NetworkSpec> {
    if asked.ingress || asked.config_only || !matches!(asked.scope.as_str(), "" | "local") {
        return Err(ApiError::not_supported("a swarm network"));
    }
    if asked.enable_ipv4 == Some(false) {
        return Err(ApiError::not_supported("a network without IPv4"));
    }
    let mut spec = NetworkSpec {
        name: asked.name,
        driver: Some(asked.driver).filter(|driver| !matches!(driver.as_str(), "" | "default")),
        internal: asked.internal,
        attachable: asked.attachable,
        ipv6: asked.enable_ipv6.unwrap_or(false),
        labels: asked.labels.unwrap_or_default(),
        options: asked.options.unwrap_or_default(),
        ..NetworkSpec::default()
    };
    let ipam = asked.ipam.unwrap_or_default();
    if !matches!(ipam.driver.as_str(), "" | "default") {
        return Err(ApiError::not_found(format!(
            "could not find a valid IPAM driver {:?}",
            short(&ipam.driver)
        )));
    }
    for pool in ipam.config.iter().flatten() {
        if pool.subnet.contains(':') {
            spec.subnet6 = Some(pool.subnet.clone());
            continue;
        }
        if spec.subnet.is_some() {
            return Err(ApiError::invalid("bridge driver doesn't support multiple subnets"));
        }
        spec.subnet = subnet(&pool.subnet)?;
        spec.ip_range = subnet(&pool.ip_range)?;
        spec.gateway = match pool.gateway.as_str() {
            "" => None,
            text => Some(address(text)?),
        };
        for (name, text) in pool.aux_addresses.iter().flatten() {
            spec.aux_addresses.insert(name.clone(), address(text)?);
        }
    }
    Ok(spec)
}

fn subnet(text: &str) -> Result<Option<Subnet4>> {
    let bad = || ApiError::invalid(format!("invalid subnet {}: invalid CIDR address", short(text)));
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| bad()),
    }
}

fn address(text: &str) -> Result<Ipv4Addr> {
    text.parse().map_err(|_| ApiError::invalid(format!("invalid address {}", short(text))))
}

/// `DELETE /networks/{id}`.
pub(crate) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode> {
    api.engine.remove_network(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /networks/{id}/connect`.
pub(crate) async fn connect(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let asked: NetworkConnectRequest = query::json(&headers, body).await?;
    let endpoint = request::endpoint(&asked.endpoint_config.unwrap_or_default())?;
    api.engine.connect_network(&id, &asked.container, endpoint).await?;
    Ok(StatusCode::OK)
}

/// `POST /networks/{id}/disconnect`.
pub(crate) async fn disconnect(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let asked: NetworkDisconnectRequest = query::json(&headers, body).await?;
    api.engine.disconnect_network(&id, &asked.container, asked.force).await?;
    Ok(StatusCode::OK)
}

/// `POST /networks/prune`.
pub(crate) async fn prune(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), &["until", "label", "label!"])?;
    let until = until_filter(&filters)?.map(jiff::Timestamp::as_second);
    let wanted = move |network: &Network| {
        until.is_none_or(|until| render::seconds_of(&network.row.created) < until)
            && filters.labels(|key| network.row.labels.get(key).map(String::as_str))
    };
    let removed = api.engine.prune_networks(wanted).await?;
    Ok(json(&NetworksPruned { networks_deleted: Some(removed).filter(|names| !names.is_empty()) }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: serde_json::Value) -> Result<NetworkSpec> {
        spec(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn networks_are_read() {
        let spec = read(json!({
            "Name": "net", "Driver": "default", "Internal": true, "Labels": {"a": "b"},
            "IPAM": {"Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.7", "IPRange": "10.9.0.128/25",
                "AuxiliaryAddresses": {"printer": "10.9.0.3"}}]},
        }))
        .unwrap();
        assert_eq!(spec.driver, None);
        assert!(spec.internal);
        assert_eq!(spec.gateway.unwrap().to_string(), "10.9.0.7");
        assert_eq!(spec.aux_addresses["printer"].to_string(), "10.9.0.3");
    }

    #[test]
    fn nonsense_is_refused() {
        for body in [
            json!({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.9.0.0/99"}]}}),
            json!({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24", "Gateway": "x"}]}}),
            json!({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}, {"Subnet": "10.8.0.0/24"}]}}),
            json!({"Name": "n", "IPAM": {"Driver": "nope"}}),
            json!({"Name": "n", "Scope": "swarm"}),
            json!({"Name": "n", "Ingress": true}),
        ] {
            assert!(read(body.clone()).is_err(), "{body}");
        }
    }
}
