//! The fields of Kubernetes' objects that the shipped files use; another one, or a
//! misspelt one, is an error.

use std::collections::BTreeMap;

use serde::Deserialize;

type Words = BTreeMap<String, String>;

macro_rules! object {
    ($($(#[$extra:meta])* $name:ident { $($(#[$field_extra:meta])* $field:ident: $kind:ty,)* })*) => {$(
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        // Some fields must be there and well-formed, and nobody asks for more.
        #[allow(dead_code)]
        $(#[$extra])*
        pub struct $name { $($(#[$field_extra])* pub $field: $kind,)* }
    )*};
}

/// One document: its version and kind go together.
#[derive(Debug, Clone)]
pub enum Document {
    RuntimeClass(RuntimeClass),
    Deployment(Deployment),
    Service(Service),
    HorizontalPodAutoscaler(HorizontalPodAutoscaler),
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let value = serde_yaml_ng::Value::deserialize(from)?;
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let as_error = D::Error::custom::<serde_yaml_ng::Error>;
        match (text("apiVersion").as_str(), text("kind").as_str()) {
            ("node.k8s.io/v1", "RuntimeClass") => {
                serde_yaml_ng::from_value(value).map(Self::RuntimeClass).map_err(as_error)
            }
            ("apps/v1", "Deployment") => {
                serde_yaml_ng::from_value(value).map(Self::Deployment).map_err(as_error)
            }
            ("v1", "Service") => {
                serde_yaml_ng::from_value(value).map(Self::Service).map_err(as_error)
            }
            ("autoscaling/v2", "HorizontalPodAutoscaler") => serde_yaml_ng::from_value(value)
                .map(Self::HorizontalPodAutoscaler)
                .map_err(as_error),
            other => Err(D::Error::custom(format!("{other:?}"))),
        }
    }
}

object! {
    Metadata {
        name: String,
        #[serde(default)] labels: Words,
    }
    TemplateMetadata {
        labels: Words,
        #[serde(default)] annotations: Words,
    }
    RuntimeClass {
        api_version: String,
        kind: String,
        metadata: Metadata,
        handler: String,
        scheduling: Scheduling,
        overhead: Overhead,
    }
    Scheduling { node_selector: Words, }
    Overhead { pod_fixed: Words, }
    Deployment {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: DeploymentSpec,
    }
    DeploymentSpec {
        replicas: Option<u32>,
        selector: Selector,
        strategy: Strategy,
        template: PodTemplate,
    }
    Selector { match_labels: Words, }
    Strategy {
        #[serde(rename = "type")] kind: String,
        rolling_update: RollingUpdate,
    }
    RollingUpdate { max_unavailable: u32, max_surge: u32, }
    PodTemplate { metadata: TemplateMetadata, spec: PodSpec, }
    PodSpec {
        runtime_class_name: String,
        share_process_namespace: Option<bool>,
        termination_grace_period_seconds: i64,
        security_context: PodSecurityContext,
        containers: Vec<Container>,
        volumes: Vec<Volume>,
    }
    PodSecurityContext {
        run_as_non_root: bool,
        run_as_user: i64,
        run_as_group: i64,
        fs_group: i64,
        seccomp_profile: Typed,
    }
    Typed { #[serde(rename = "type")] kind: String, }
    Container {
        name: String,
        image: String,
        ports: Vec<ContainerPort>,
        env: Vec<Variable>,
        resources: Resources,
        security_context: SecurityContext,
        readiness_probe: Probe,
        volume_mounts: Vec<VolumeMount>,
    }
    ContainerPort { name: String, container_port: u16, }
    Variable { name: String, value: String, }
    Resources { requests: Words, limits: Words, }
    SecurityContext {
        allow_privilege_escalation: bool,
        read_only_root_filesystem: bool,
        capabilities: Capabilities,
    }
    Capabilities { drop: Vec<String>, }
    Probe { http_get: HttpGet, period_seconds: u32, }
    HttpGet { path: String, port: String, }
    VolumeMount { name: String, mount_path: String, }
    Volume { name: String, empty_dir: EmptyDir, }
    EmptyDir { size_limit: String, }
    Service {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: ServiceSpec,
    }
    ServiceSpec { selector: Words, ports: Vec<ServicePort>, }
    ServicePort { name: String, port: u16, target_port: String, }
    HorizontalPodAutoscaler {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: ScalerSpec,
    }
    ScalerSpec {
        scale_target_ref: Reference,
        min_replicas: u32,
        max_replicas: u32,
        metrics: Vec<Metric>,
    }
    Reference { api_version: String, kind: String, name: String, }
    Metric {
        #[serde(rename = "type")] kind: String,
        resource: ResourceMetric,
    }
    ResourceMetric { name: String, target: Target, }
    Target {
        #[serde(rename = "type")] kind: String,
        average_utilization: u32,
    }
}
