//! Questions that may take their time, on threads that may.
//!
//! The rooms below block: they read rows and documents, wait for the disk, walk trees.
//! One thread serves everybody, so nothing of that may happen on it: a deletion of a
//! million files, or a disk that does not answer, would stop `_ping` and every start.
//! The API therefore has no room in its hands. It asks here, and the rule holds by
//! what it can name:
//!
//! ```text
//!   handler ── ask_images(|images| …) ──► a thread that may block ──► answer
//!           ── disk usage, size       ──► a thread for walks
//! ```
//!
//! In the engine itself, what a verb does in the middle of its steps with one row or one
//! small file of its own stays where it is; everything whose length others decide goes to
//! a thread.

use knarr_image::{DiskUsage, Image, Images};
use knarr_network::Networks;
use knarr_registry::Auth;
use knarr_volume::{Volume, Volumes};
use knarr_work::WALKS;

use crate::{
    Error, Result,
    engine::Engine,
    facades::{blocking, long},
    failpoint,
    view::Info,
};

/// A volume with what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Which.
    pub volume: Volume,
    /// Containers that use it.
    pub users: usize,
    /// Its bytes; none where they cannot be counted.
    pub bytes: Option<u64>,
}

impl Engine {
    /// Asks the images something.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub async fn ask_images<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Images) -> T + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        blocking(move || {
            failpoint::hit("ask.images")?;
            Ok(question(&engine.0.images))
        })
        .await?
    }

    /// Asks the volumes something; what they take is [`Engine::volume_usage`]'s.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub async fn ask_volumes<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Volumes) -> T + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        blocking(move || {
            failpoint::hit("ask.volumes")?;
            Ok(question(&engine.0.volumes))
        })
        .await?
    }

    /// Asks the networks something.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub async fn ask_networks<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Networks) -> T + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        blocking(move || {
            failpoint::hit("ask.networks")?;
            Ok(question(&engine.0.networks))
        })
        .await?
    }

    /// All images, and what they take.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub async fn image_usage(&self) -> Result<(Vec<Image>, DiskUsage)> {
        let engine = self.clone();
        long(&WALKS, move || {
            failpoint::hit("usage.images")?;
            let images = &engine.0.images;
            let usage = images.disk_usage().map_err(Error::from_room)?;
            Ok((images.list().map_err(Error::from_room)?, usage))
        })
        .await?
    }

    /// All volumes, and what each takes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn volume_usage(&self) -> Result<Vec<VolumeUsage>> {
        let engine = self.clone();
        long(&WALKS, move || {
            failpoint::hit("usage.volumes")?;
            let volumes = &engine.0.volumes;
            let all = volumes.list().map_err(Error::from_room)?;
            let usage = |volume: Volume| {
                let name = volume.name.as_str();
                let users = volumes.users(name).map_err(Error::from_room)?.len();
                Ok(VolumeUsage { users, bytes: volumes.usage(name).ok(), volume })
            };
            all.into_iter().map(usage).collect()
        })
        .await?
    }

    /// Whether a registry lets these credentials in (`login`).
    ///
    /// # Errors
    /// The registry's refusal.
    pub async fn check_credentials(&self, domain: &str, auth: &Auth) -> Result<()> {
        self.0.images.check_credentials(domain, auth).await.map_err(Error::from_room)
    }

    /// What the host and the engine are.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub async fn info(&self) -> Result<Info> {
        let engine = self.clone();
        blocking(move || engine.info_now()).await
    }

    /// The kernel's release.
    pub fn kernel(&self) -> String {
        crate::host::kernel()
    }
}
