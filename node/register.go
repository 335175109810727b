package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/node/certificate"
	"github.com/muslin-net/muslin/node/environment"
	"github.com/muslin-net/muslin/node/startup"
	"github.com/muslin-net/muslin/node/watch"
	"github.com/muslin-net/muslin/typha/client"
)

// rewatch is how long to wait after the kernel's messages were lost.
const rewatch = 5 * time.Second

// startPatience is how long a node that has been part of the cluster before waits for typha when it starts. Then its daemons
// start from what is saved, and what was to be done here is done by those that keep the registration and the certificate.
const startPatience = time.Minute

// node is this node as typha is to know it.
func (c config) node(log *slog.Logger) (startup.Config, onDemand, error) {
	name, err := startup.NodeName(c.Node, c.LibDir, os.Getenv, log)
	if err != nil {
		return startup.Config{}, onDemand{}, err
	}
	typha, err := c.Config(name, os.LookupEnv, log)
	return startup.Config{Node: name, LibDir: c.LibDir, Env: os.Getenv, Log: log}, onDemand{typha}, err
}

// keeper is who has the node's certificate renewed.
func (c config) keeper(node string, typha onDemand, log *slog.Logger) (*certificate.Keeper, error) {
	enrollers, err := c.Enrollers(os.LookupEnv)
	return &certificate.Keeper{
		Node: node, Settings: c.Enrol, Files: c.Files(), Typhas: enrollers, TyphaName: c.TyphaName, Authority: typha, Log: log,
	}, err
}

// start makes a node part of the cluster.
func start(ctx context.Context, cfg config, log *slog.Logger) error {
	for _, told := range environment.Notes(os.Environ()) {
		log.Info(told)
	}
	node, typha, err := cfg.node(log)
	if err != nil {
		return err
	}
	keeper, err := cfg.keeper(node.Node, typha, log)
	if err != nil {
		return err
	}
	node.Enrol = keeper.Ensure
	work, known := ctx, startup.Before(node)
	if known {
		var cancel context.CancelFunc
		work, cancel = context.WithTimeout(ctx, startPatience)
		defer cancel()
	}
	err = startup.Run(work, node, typha)
	if known && ctx.Err() == nil && work.Err() != nil {
		log.Warn("typha cannot be reached; this node goes on with what it knows from before, and registers when typha is back", "node", node.Node, "error", err)
		return nil
	}
	return err
}

// leavePatience is how long -shutdown waits for typha: felix ends only after it.
const leavePatience = 2 * time.Second

// shutdown has Kubernetes told that the node has no network. It does not fail: felix ends in any case.
func shutdown(ctx context.Context, cfg config, log *slog.Logger) error {
	if backend, err := startup.Backend(os.Getenv); err != nil || backend == api.BackendNone {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	_, typha, err := cfg.node(log)
	if err == nil {
		err = typha.with(func(c *client.Client) error { return c.Leave(ctx) })
	}
	if err != nil {
		log.Warn("Kubernetes is not told that this node's felix ends", "error", err)
	}
	return nil
}

func monitorToken(ctx context.Context, cfg config, log *slog.Logger) error {
	node, typha, err := cfg.node(log)
	if err != nil {
		return err
	}
	keeper, err := cfg.keeper(node.Node, typha, log)
	if err != nil {
		return err
	}
	return keeper.Keep(ctx)
}

// monitorAddresses keeps the registration at the host's addresses. What the kernel tells makes it quick; the polls alone would
// do.
func monitorAddresses(ctx context.Context, cfg config, log *slog.Logger) error {
	node, typha, err := cfg.node(log)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return startup.Follow(ctx, node, typha, changed) })
	group.Go(func() error {
		for {
			err := watch.Addresses(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			if ctx.Err() != nil {
				return nil
			}
			log.Warn("changes of addresses are seen by polling until they can be watched again", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rewatch):
			}
		}
	})
	return group.Wait()
}

// onDemand connects to typha for each call: calls are rare, and a connection from an address that the node no longer has
// would hold the next one up until it times out.
type onDemand struct{ config client.Config }

// Register registers the node.
func (o onDemand) Register(ctx context.Context, r client.Registration) (done client.Registered, err error) {
	err = o.with(func(typha *client.Client) error {
		done, err = typha.Register(ctx, r)
		return err
	})
	return done, err
}

// Renew gets the next certificate with the one that is there.
func (o onDemand) Renew(ctx context.Context) (next time.Time, err error) {
	err = o.with(func(typha *client.Client) error {
		next, err = typha.Renew(ctx)
		return err
	})
	return next, err
}

// Enroll gets the first one.
func (onDemand) Enroll(ctx context.Context, e client.Enrollment) (time.Time, error) {
	return client.Enroll(ctx, e)
}

func (o onDemand) with(do func(*client.Client) error) error {
	typha, err := client.New(o.config)
	if err != nil {
		return fmt.Errorf("typha: %w", err)
	}
	defer typha.Close()
	return do(typha)
}
