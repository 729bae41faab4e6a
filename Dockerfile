# The image: three static programs and nothing else. `make image` puts the same files into an OCI archive without an engine;
# tests/image.rs holds both to the same list.
#
#   docker build -t registry.example.com/patroni-rs:0.1.0 .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# A C library inside the programs: they run in a stock Postgres container whatever it is made of, and in an empty one.
# With --target the flag does not reach build scripts and macros, which cannot be static.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" \
        --bin patroni --bin postgres-keeper --bin patronictl \
 && mkdir /out && cp "target/$target/release/patroni" "target/$target/release/postgres-keeper" \
        "target/$target/release/patronictl" /out/

FROM scratch
COPY --from=build --chmod=0755 /out/patroni /usr/local/bin/patroni
COPY --from=build --chmod=0755 /out/postgres-keeper /usr/local/bin/postgres-keeper
COPY --from=build --chmod=0755 /out/patronictl /usr/local/bin/patronictl
ENV PATH=/usr/local/bin
# The user of the official Postgres images. Sidecar and Postgres must have one uid; the chart sets it for both.
USER 999:999
ENTRYPOINT ["/usr/local/bin/patroni"]
