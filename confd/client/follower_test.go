package client

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// answering is a bird that runs a configuration of some generation, or none, or is away.
type answering struct {
	Asked
	generation uint64
	err        error
}

func (a answering) RelayPeers(context.Context, []byte) ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	return proto.Marshal(&birdv1.PeersResponse{Generation: a.generation})
}

// TestSavedView: a saved view, which may be older than what bird runs, configures a bird that has nothing, and no other.
func TestSavedView(t *testing.T) {
	for name, test := range map[string]struct {
		bird answering
		want bool
	}{
		"it has nothing":          {answering{}, false},
		"it has a configuration":  {answering{generation: 7}, true},
		"it is away, and returns": {answering{err: errors.New("connection refused")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := NewFollower(slog.New(slog.DiscardHandler), nil, nil, test.bird)
			require.Equal(t, test.want, f.configured())
		})
	}
}

// TestSeverity has the level of the log follow what the resources say, and be what it was while they say nothing.
func TestSeverity(t *testing.T) {
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	f := NewFollower(slog.New(slog.DiscardHandler), nil, nil, answering{})
	f.Level(&level)
	for severity, want := range map[string]slog.Level{
		"Trace": slog.LevelDebug, "debug": slog.LevelDebug, "Info": slog.LevelInfo, "WARNING": slog.LevelWarn, "Error": slog.LevelError,
		"Fatal": slog.LevelError, "": slog.LevelWarn,
	} {
		f.level(severity)
		require.Equal(t, want, level.Level(), severity)
	}
}
