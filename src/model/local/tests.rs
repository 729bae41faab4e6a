//! What a member remembers by itself.

use super::*;
use crate::model::{Initializer, Member};

#[test]
fn an_initializer_is_gone_since_its_uid_left_the_view() {
    let at = BootInstant::from_secs_f64;
    let mut local = Local::at_start("a".into(), "s".into(), at(0.0), Duration::from_secs(30));
    let mut cluster = Cluster { initialize: Initialize::InProgress, ..Cluster::default() };
    cluster.initializer = Some(Initializer { uid: "u1".into(), session: "s".into() });
    cluster.members.insert("b".into(), Member { uid: "u1".into(), ..Member::default() });
    local.watch_initializer(&cluster, at(1.0));
    assert_eq!(local.initializer_gone, None);
    // A new pod of the same name is another one.
    cluster.members.insert("b".into(), Member { uid: "u2".into(), ..Member::default() });
    local.watch_initializer(&cluster, at(2.0));
    local.watch_initializer(&cluster, at(9.0));
    assert_eq!(local.initializer_gone, Some(("u1".into(), at(2.0))));
    cluster.initialize = Initialize::Absent;
    local.watch_initializer(&cluster, at(10.0));
    assert_eq!(local.initializer_gone, None);
}
