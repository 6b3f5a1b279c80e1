# The image of every release. "make image" builds it for this machine, "make
# image-push" for all platforms: they give the arguments without which it would not
# say which version it is. .ci/image shows what comes out of it.

# Another builder needs Go and make; another base image needs nothing.
ARG BUILDER=docker.io/library/golang:1.26
ARG BASE=scratch

# Go compiles for every platform on the one that builds.
FROM --platform=$BUILDPLATFORM $BUILDER AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN go run ./deploy/licenses >/third-party-licenses
ARG TARGETOS
ARG TARGETARCH
ARG TARGETVARIANT
ARG VERSION
ARG REVISION
ARG DATE
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH GOARM=${TARGETVARIANT#v} \
    make build VERSION=$VERSION REVISION=$REVISION DATE=$DATE BINARY=/sockpressure_exporter

FROM $BASE
COPY LICENSE /licenses/LICENSE
COPY --from=build /third-party-licenses /licenses/third-party-licenses
COPY --from=build /sockpressure_exporter /bin/sockpressure_exporter
USER 65532:65532
EXPOSE 10058
ENTRYPOINT ["/bin/sockpressure_exporter"]
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="sockpressure_exporter" \
      org.opencontainers.image.description="Prometheus exporter that tells how near a Linux host is to the kernel's limits on sockets and memory" \
      org.opencontainers.image.source="https://github.com/sockpressure/sockpressure_exporter" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
