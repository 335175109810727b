package daemon

import (
	"fmt"
	"log/slog"
	"strings"
)

// ParseSeverity is the level that a severity stands for as Calico's resources and environments write it, in any case.
func ParseSeverity(severity string) (slog.Level, error) {
	switch strings.ToLower(severity) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warning", "warn":
		return slog.LevelWarn, nil
	case "error", "fatal", "panic":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not a severity; use Trace, Debug, Info, Warning, Error or Fatal", severity)
}

// Severities sets a log's level to what resources say, which is nothing where they are empty or wrong: then the level is the one
// that it has now.
func Severities(level *slog.LevelVar) func(severity string) {
	given := level.Level()
	return func(severity string) {
		if l, err := ParseSeverity(severity); err == nil {
			level.Set(l)
			return
		}
		level.Set(given)
	}
}
