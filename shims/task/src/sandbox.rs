//! containerd's Sandbox API (`containerd.runtime.sandbox.v1.Sandbox`): a shim that is
//! asked for it keeps one [`Pod`], and the pod's containers are its tasks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use containerd_shim_protos::{
    protobuf::{MessageField, well_known_types::any::Any},
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
        StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
        WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async,
};
use jiff::Timestamp;
use ttrpc::asynchronous::TtrpcContext;

use crate::{
    metrics, pod,
    service::{Tasks, moment, timestamp},
};

/// Where the request does not say how long a stop may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// containerd's name for an OCI specification.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The service.
pub(crate) struct Api(pub(crate) Arc<Tasks>);

#[async_trait]
impl sandbox_async::Sandbox for Api {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.0.add_pod(&request)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let pod = self.0.pod(&request.sandbox_id)?;
        Ok(StartSandboxResponse {
            pid: pod.task.start()?,
            created_at: moment(pod.created),
            spec: MessageField::some(Any {
                type_url: SPEC.to_owned(),
                value: pod.specification.clone(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        self.0.pod(&request.sandbox_id)?;
        let mut response = PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = knarr_model::Platform::host().architecture;
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let patience = match request.timeout_secs {
            0 => PATIENCE,
            seconds => Duration::from_secs(seconds.into()),
        };
        self.0.stop_pod(&request.sandbox_id, patience).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let pod = self.0.pod(&request.sandbox_id)?;
        let exit = pod.task.init.wait().await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let pod = self.0.pod(&request.sandbox_id)?;
        // Kubernetes' words.
        let state = if pod.is_ready() { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
        Ok(SandboxStatusResponse {
            sandbox_id: pod.id.clone(),
            pid: pod.task.init.pid(),
            state: state.to_owned(),
            info: if request.verbose { pod::info(&pod) } else { Default::default() },
            created_at: moment(pod.created),
            exited_at: timestamp(pod.task.init.exit()),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.0.pod(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.0.end_pod(&request.sandbox_id, PATIENCE).await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let pod = self.0.pod(&request.sandbox_id)?;
        let stats = pod.task.stats()?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id.clone_from(&pod.id);
        metric.timestamp = moment(Timestamp::now());
        metric.data = MessageField::some(metrics::encode(&stats));
        Ok(response)
    }
}
