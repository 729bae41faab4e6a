//! kubemem
