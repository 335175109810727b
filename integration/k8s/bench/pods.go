package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

// podsPath is where the pods of the bench are.
const podsPath = "/api/v1/namespaces/default/pods"

// pods starts and ends pods by the API itself: a kubectl would take longer to start than a pod.
type pods struct {
	client *http.Client
	url    string
}

func newPods(c *cluster.Cluster) (*pods, error) {
	config, err := c.Config()
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(config)
	return &pods{client: client, url: config.Host}, err
}

type object = map[string]any

// look is how often a pod is looked at, and so what its time may be wrong by.
const look = 20 * time.Millisecond

// start makes a pod and returns, when it is ready, how long that took.
func (p *pods) start(ctx context.Context, name, node string, hostNetwork bool) (time.Duration, error) {
	body, err := json.Marshal(object{
		"metadata": object{"name": name},
		"spec": object{
			"nodeName": node, "hostNetwork": hostNetwork, "terminationGracePeriodSeconds": 1,
			"tolerations": []object{{"operator": "Exists"}},
			"containers":  []object{{"name": "workload", "image": cluster.WorkloadImage}},
		},
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := p.do(ctx, http.MethodPost, podsPath, body); err != nil {
		return 0, err
	}
	err = p.await(ctx, func() error {
		text, err := p.do(ctx, http.MethodGet, podsPath+"/"+name, nil)
		if err != nil {
			return err
		}
		var pod struct {
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if err := json.Unmarshal(text, &pod); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not ready: %+v", name, pod.Status.Conditions)
	})
	return time.Since(began), err
}

// end deletes a pod and returns when it is gone.
func (p *pods) end(ctx context.Context, name string) error {
	if _, err := p.do(ctx, http.MethodDelete, podsPath+"/"+name, nil); err != nil {
		return err
	}
	return p.await(ctx, func() error {
		_, err := p.do(ctx, http.MethodGet, podsPath+"/"+name, nil)
		if errors.Is(err, errNotFound) {
			return nil
		}
		return errors.Join(fmt.Errorf("pod %s is still there", name), err)
	})
}

// account waits until pods can be made: each has the account that a controller makes for its namespace.
func (p *pods) account(ctx context.Context) error {
	return p.await(ctx, func() error {
		_, err := p.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		return err
	})
}

// await looks again and again until there is no error.
func (p *pods) await(ctx context.Context, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// patience is how long a pod may take before the bench is given up.
const patience = 3 * time.Minute

var errNotFound = errors.New("there is none")

func (p *pods) do(ctx context.Context, method, path string, body []byte) (text []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := p.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, answer.Body.Close()) }()
	text, err = io.ReadAll(answer.Body)
	switch {
	case err != nil:
	case answer.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("%s %s: %w", method, path, errNotFound)
	case answer.StatusCode >= http.StatusMultipleChoices:
		err = fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	return text, err
}
