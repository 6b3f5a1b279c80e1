# What the binary says of itself. Where there is no git, as in an image's build,
# give REVISION and DATE on the command line, or it does without them.
VERSION  = $(file <VERSION)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
DATE     = $(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d-%H:%M:%S 2>/dev/null)
CREATED  = $(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null)
BINARY   = sockpressure_exporter
IMAGE    = ghcr.io/sockpressure/sockpressure_exporter:v$(VERSION)

v = github.com/prometheus/common/version
buildx = docker buildx build -t $(IMAGE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg DATE=$(DATE) --build-arg CREATED=$(CREATED)

.PHONY: help build test lab lab-record image image-push release

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: ## the binary as it is released: static, stripped, the same bytes for the same commit
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X $v.Version=$(VERSION) -X $v.Revision=$(REVISION) -X $v.BuildDate=$(DATE)" -o $(BINARY) .

test: ## the tests; as root, for all of them
	go test ./...

lab: ## Debian's kernels in QEMU, driven into every limit (see lab/README.md)
	go run ./lab

lab-record: ## the same on every kernel, and renew lab/recordings and docs/kernels.md
	go run ./lab --kernels=all --record

image: ## the container image, for this machine
	$(buildx) --load .

image-push: ## the same for every platform, pushed to the registry
	$(buildx) --platform linux/amd64,linux/arm64,linux/arm/v7,linux/386 --push .

release: ## dist/: archives, .deb, .rpm, SBOM and checksums of the last commit
	deploy/release
