package main

import (
	"cmp"
	"context"
	"net"
	"os"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/node/probe"
	"github.com/muslin-net/muslin/node/startup"
)

// felixHealth is where felix answers probes, found as felix itself finds it.
func (c config) felixHealth() string {
	return cmp.Or(c.FelixHealth, net.JoinHostPort(c.HealthHost, c.HealthPort))
}

// checkBird passes where no bird is wanted, so that one set of probes does for every backend.
func checkBird(ctx context.Context, cfg config, path string) error {
	backend, err := startup.Backend(os.Getenv)
	if err != nil || !backend.BGP() {
		return err
	}
	return probe.Check(ctx, "bird", cfg.BirdHealth, path)
}

// drain takes the node out of BGP, or puts it back. Where no bird is wanted there is nothing to do.
func drain(ctx context.Context, cfg config) error {
	backend, err := startup.Backend(os.Getenv)
	if err != nil || !backend.BGP() {
		return err
	}
	speaker, err := bird.New(cfg.BirdSocket)
	if err != nil {
		return err
	}
	defer speaker.Close()
	if cfg.Undrain {
		return speaker.Undrain(ctx)
	}
	return speaker.Drain(ctx, cfg.DrainWait)
}
