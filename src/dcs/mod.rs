//! dcs
