package uplink

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/environ"
	"github.com/muslin-net/muslin/felix/server"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
	"github.com/muslin-net/muslin/typha/client"
)

// View hands what typha sends to the agent, and answers operators' questions that typha relays.
type View struct {
	Agent       *agent.Agent
	Server      *server.Server
	Environment environ.Settings // wins over the configuration that typha sends
	// Severity is told how much the configuration wants logged.
	Severity func(severity string)
}

// OnBatch commits a batch; it is acknowledged when it is in the kernel.
func (v View) OnBatch(b client.Batch) {
	batch := v.Environment.Over(b.Batch)
	for _, item := range batch.Updates {
		if r, ok := item.(view.Resource); ok {
			if c, ok := r.Object.(*api.FelixConfiguration); ok {
				v.Severity(c.Spec.LogSeverityScreen)
			}
		}
	}
	v.Agent.Batch(context.Background(), batch, func() { b.Applied() })
}

// OnQuery answers with felix's own read methods.
func (v View) OnQuery(ctx context.Context, q client.Question, reply func([]byte) error) error {
	switch q.Method {
	case client.FelixDump:
		return answer(ctx, q.Request, &felixv1.DumpRequest{}, v.Server.Dump, reply)
	case client.FelixExplain:
		return answer(ctx, q.Request, &felixv1.ExplainRequest{}, v.Server.Explain, reply)
	case client.FelixEndpoints:
		return answer(ctx, q.Request, &felixv1.EndpointsRequest{}, v.Server.Endpoints, reply)
	}
	return fmt.Errorf("method %d: %w", q.Method, client.ErrUnserved)
}

func answer[Q, A proto.Message](ctx context.Context, body []byte, q Q, call func(context.Context, Q) (A, error), reply func([]byte) error) error {
	if err := proto.Unmarshal(body, q); err != nil {
		return fmt.Errorf("the question cannot be read: %w", err)
	}
	a, err := call(ctx, q)
	if err != nil {
		return err
	}
	out, err := proto.Marshal(a)
	if err != nil {
		return err
	}
	return reply(out)
}
