package embedded

import (
	"log/slog"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger returns a logger for etcd that passes on what it dies of, and drops the rest: etcd tells its whole life at
// info, warns of every slow disk, and calls an ordinary start and stop errors. What fails is told to its clients anyway.
func newLogger(log *slog.Logger) *zap.Logger {
	return zap.New(core{log: log.With("component", "etcd"), LevelEnabler: zapcore.DPanicLevel})
}

// core writes zap's entries to slog.
type core struct {
	zapcore.LevelEnabler
	log  *slog.Logger
	with []zapcore.Field
}

// With returns a core that adds the fields to each entry.
func (c core) With(fields []zapcore.Field) zapcore.Core {
	c.with = append(slices.Clip(c.with), fields...)
	return c
}

// Check adds the core to those that write the entry, if the level is enough.
func (c core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write passes one entry on.
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(c.with), fields...) {
		f.AddTo(values)
	}
	var args []any
	for k, v := range values.Fields {
		args = append(args, k, v)
	}
	c.log.Error(e.Message, args...)
	return nil
}

// Sync has nothing to do.
func (c core) Sync() error { return nil }
