package main

import (
	"os"
	"reflect"

	"github.com/muslin-net/muslin/felix/environ"
	"github.com/muslin-net/muslin/internal/daemon"
)

// environment reads the parameters that felix's own environment sets; variables that are settings of the process are not
// among them.
func environment(d *daemon.Daemon) environ.Settings {
	var taken []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config]()) {
		if variable := field.Tag.Get("env"); variable != "" {
			taken = append(taken, variable)
		}
	}
	settings, problems := environ.Parse(os.Environ(), taken...)
	for _, problem := range problems {
		d.Log.Warn("part of the environment does not count", "problem", problem)
	}
	if names := settings.Names(); len(names) > 0 {
		d.Log.Info("the environment sets parameters for this node", "parameters", names)
	}
	return settings
}
