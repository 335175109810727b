package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/internal/rpc"
)

// Serve serves gRPC on a unix socket that only root may use, until ctx ends.
func Serve(ctx context.Context, socket string, register func(grpc.ServiceRegistrar)) error {
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		return err
	}
	g := rpc.NewServer(nil)
	register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	return g.Serve(l)
}

// WatchdogPromise is how often the watchdog at least reports.
const WatchdogPromise = 30 * time.Second

// Part is where the watchdog reports to.
type Part interface {
	Ready()
	NotReady(reason string)
}

// namedMost is how many sessions a note names; the rest it counts.
const namedMost = 3

// Watchdog asks the speaker every second whether it does its work, and reports it: it is ready when it holds a configuration
// and serves the sessions. Sessions that are down do not count, or the routers of others would take this node out of service;
// which they are, and why, is noted beside.
func Watchdog(ctx context.Context, s *speaker.Speaker, part Part, note func(string)) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := s.Ready(); err != nil {
			part.NotReady(err.Error())
		} else {
			part.Ready()
		}
		note(condition(s))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// condition says how many of the sessions are up, and which are not.
func condition(s *speaker.Speaker) string {
	var ailing []string
	all := 0
	for _, p := range s.Sessions("") {
		if p.ShadowedBy != "" {
			continue
		}
		if all++; p.State == speaker.Established {
			continue
		}
		why := strings.TrimSpace(p.State.String() + " " + p.LastError)
		if p.WaitingFor != "" {
			why = "waiting for " + p.WaitingFor
		}
		if p.Diagnosis != "" {
			why += ": " + p.Diagnosis
		}
		ailing = append(ailing, p.Name+" "+why)
	}
	if all == 0 {
		return "there are none"
	}
	text := fmt.Sprintf("%d of %d are up", all-len(ailing), all)
	for i, one := range ailing {
		if i == namedMost {
			return fmt.Sprintf("%s; and %d more", text, len(ailing)-i)
		}
		text += "; " + one
	}
	return text
}
