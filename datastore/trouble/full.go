package trouble

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/datastore"
)

// KeepFull asks whether the datastore's space is used up until ctx ends, and tells if it is: by a metric, in the log, and by note, which
// is given an empty text when it no longer is. Reads and watches of such a datastore go on as ever, so nothing else tells of it but the
// writes that fail here and there.
func KeepFull(ctx context.Context, process string, full func(context.Context) error, note func(text string), r prometheus.Registerer, log *slog.Logger) error {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: strings.ReplaceAll(process, "-", "_"), Name: "datastore_full",
		Help: "1 if the datastore has no space left and takes no writes; what is known stays in force.",
	})
	r.MustRegister(gauge)
	told := false
	for {
		one, cancel := context.WithTimeout(ctx, keepWait)
		err := full(one)
		cancel()
		switch is := errors.Is(err, datastore.ErrFull); {
		case err != nil && !is: // what Keep tells of
		case is && !told:
			log.Warn("nothing can be written; what is known stays in force, and what nodes report is kept here", "error", err)
			gauge.Set(1)
			note(err.Error())
			told = true
		case !is && told:
			log.Info("the datastore takes writes again")
			gauge.Set(0)
			note("")
			told = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keepEvery):
		}
	}
}
