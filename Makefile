.PHONY: help test lab lab-record

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

test: ## the tests; as root, for all of them
	go test ./...

lab: ## Debian's kernels in QEMU, driven into every limit (see lab/README.md)
	go run ./lab

lab-record: ## the same, and renew lab/recordings and docs/kernels.md
	go run ./lab --record
