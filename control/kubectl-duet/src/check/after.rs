//! What must be true once Duet is there.

use super::before::other_meshes;
use super::control_plane::{authority, bundles, definitions, leader, replicas};
use super::data_plane::{agents, answers, builds, certificates, pods, roots};
use super::injection::{endpoints, injection, webhook};
use super::{Check, Group};
use crate::cli::Global;
use crate::cluster::{Cluster, Error};
use crate::status::gather::{Control, Mesh};

pub async fn installed(cluster: &Cluster, global: &Global) -> Result<Vec<Check>, Error> {
    let mut checks = Vec::new();
    let control = Control::gather(cluster).await?;
    let mesh = Mesh::gather(cluster, None).await?;

    let mut group = Group::new("control plane");
    definitions(&mut group, cluster).await?;
    replicas(&mut group, &control);
    leader(&mut group, &control);
    authority(&mut group, &control);
    let bundle = bundles(&mut group, cluster, &mesh).await?;
    checks.append(&mut group.checks);

    let mut group = Group::new("injection");
    webhook(
        &mut group,
        cluster,
        bundle.as_deref(),
        control.now.as_second(),
    )
    .await?;
    endpoints(&mut group, cluster).await?;
    let namespace = global.namespace.as_deref().unwrap_or("default");
    injection(&mut group, cluster, namespace).await?;
    other_meshes(&mut group, cluster).await?;
    checks.append(&mut group.checks);

    let mut group = Group::new("data plane");
    agents(&mut group, &mesh);
    pods(&mut group, &mesh);
    answers(&mut group, &mesh.told);
    builds(&mut group, &control, &mesh.told);
    certificates(&mut group, &mesh.told);
    if let Some(bundle) = bundle {
        roots(&mut group, &mesh.told, &bundle);
    }
    checks.append(&mut group.checks);
    Ok(checks)
}
