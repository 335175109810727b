package driver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/muslin-net/muslin/csi/client"
)

// DefaultConfig is where the driver's file of settings is, if there is one (spec §7.2).
const DefaultConfig = "/etc/calico/csi/nodeagent.json"

// Config is the content of the file. What is left out has its usual value.
type Config struct {
	// Home is the directory of all that the driver keeps.
	Home string `json:"nodeagent_management_home,omitempty"`
	// Mounts and Records are directories below it. felix looks for mount and creds.
	Mounts  string `json:"nodeagent_workload_home,omitempty"`
	Records string `json:"nodeagent_credentials_home,omitempty"`
	// LogLevel is INFO or WARNING. It is read so that the file may stay as it is; --log-level is what counts.
	LogLevel string `json:"log_level,omitempty"`
	// Node and Endpoint count if no flag gives them.
	Node     string `json:"node_id,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
}

// ReadConfig reads the file; one that is not there is as good as an empty one.
func ReadConfig(path string) (c Config, err error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("the driver's settings: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("the driver's settings in %s: %w", path, err)
	}
	return c, nil
}

// Layout is where the driver keeps what it has.
func (c Config) Layout() (client.Home, error) {
	dir := c.Home
	if dir == "" {
		dir = client.DefaultHome
	}
	if !filepath.IsAbs(dir) {
		return client.Home{}, fmt.Errorf("setting nodeagent_management_home: %q is not an absolute path", dir)
	}
	home := client.HomeAt(dir)
	if c.Mounts != "" {
		home.Mounts = filepath.Join(dir, filepath.Clean("/"+c.Mounts))
	}
	if c.Records != "" {
		home.Records = filepath.Join(dir, filepath.Clean("/"+c.Records))
	}
	if within(home.Mounts, home.Records) || within(home.Records, home.Mounts) {
		return client.Home{}, fmt.Errorf("settings nodeagent_workload_home and nodeagent_credentials_home: %s and %s are not apart; pods must not see the records", home.Mounts, home.Records)
	}
	return home, nil
}
