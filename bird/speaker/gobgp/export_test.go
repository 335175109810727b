package gobgp

import (
	"context"
	"log/slog"

	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/muslin-net/muslin/bird/speaker"
)

// Connections is for tests that look after connections.
var Connections = connections

// NewOfOtherFilters is New with a gobgp that has no filters where the feed looks for them.
func NewOfOtherFilters(ctx context.Context, log *slog.Logger, events speaker.Events) (*Engine, error) {
	return newEngine(ctx, log, events, func(*feed, *server.BgpServer) {})
}

// NewOfOtherPaths is New with a gobgp whose paths are not as the feed wants them.
func NewOfOtherPaths(ctx context.Context, log *slog.Logger, events speaker.Events) (*Engine, error) {
	return newEngine(ctx, log, events, func(f *feed, s *server.BgpServer) {
		f.attach(s)
		f.shape = different
	})
}
