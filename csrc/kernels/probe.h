/* Independent chains of the probe: enough for two ports of latency 5, few enough for 16 registers. */
#ifndef FA_PROBE_H
#define FA_PROBE_H

#define PROBE_CHAINS 12

#endif
