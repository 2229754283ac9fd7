⍝ decoder.apl: the logits of the model in this folder, in GNU APL 1.8.
⍝
⍝     apl --script -f decoder.apl
⍝           OPEN '.'
⍝           LOGITS 5 17 200 3
⍝
⍝ OPEN takes the folder and executes its variables.apl. LOGITS takes token ids, which count from 0, and gives a matrix
⍝ [tokens, vocabulary]: row I has the logits of the token behind the first I ids. Weights are read from their files whenever
⍝ they are needed, so that one matrix at a time is in memory, at 24 bytes a number.
⍝
⍝ The model is a Llama: RMSNorm in front of attention and of the feed-forward layer, rotary embedding by halves of a head,
⍝ attention with as many query heads as key heads or more, SwiGLU. OPEN refuses anything else by name.

⎕IO←1

⍝ Opens the folder DIR.
∇OPEN DIR;LINES;I
 LINES←⎕FIO[49] DIR,'/variables.apl'
 →(1<≡LINES)/FOUND
 ⎕ES DIR,'/variables.apl: no such file'
FOUND:FOLDER←DIR
 I←0
NEXT:→((⍴LINES)<I←I+1)/CHECK
 ⍎↑LINES[I]
 →NEXT
CHECK:'ATTENTION_VARIANT' SUPPORTS 'full' 'gqa' 'mqa'
 'ACTIVATION' SUPPORTS 'swiglu' ''
 'NORM_TYPE' SUPPORTS 'rmsnorm' ''
 →(∧/2=(⎕NC 'RMS_NORM_EPS'),(⎕NC 'ROPE_FREQUENCIES'),⎕NC 'ROPE_FACTOR')/0
 ⎕ES 'variables.apl has no RMS_NORM_EPS, ROPE_FREQUENCIES or ROPE_FACTOR: write it with bitllama-train export --to apl'
∇

⍝ Refuses a value of the variable NAME that is none of KNOWN.
∇NAME SUPPORTS KNOWN;VALUE
 VALUE←⍎NAME
 →((⊂VALUE)∊KNOWN)/0
 ⎕ES NAME,' ',VALUE,' is not supported; supported:',∊' ',¨KNOWN
∇

⍝ The logits of all tokens of IDS.
∇Z←LOGITS IDS;X;I;LAYER;HEAD
 IDS←,IDS
 →(∧/(IDS≥0)∧IDS<VOCAB_SIZE)/INSIDE
 ⎕ES 'a token id is not between 0 and ',⍕VOCAB_SIZE-1
INSIDE:X←(WEIGHT 'embedding.weight')[1+IDS;]
 I←¯1
NEXT:→(NUM_LAYERS≤I←I+1)/DONE
 LAYER←'transformer.layers.',(⍕I),'.'
 X←X+LAYER ATTEND X NORM LAYER,'input_layernorm.weight'
 X←X+LAYER FEED X NORM LAYER,'post_attention_layernorm.weight'
 →NEXT
DONE:HEAD←↑((⊂'lm_head.weight')∊WEIGHT_NAMES)⌽'embedding.weight' 'lm_head.weight'
 Z←(X NORM 'norm.weight') BY HEAD
∇

⍝ X [tokens, in] times the matrix NAME [out, in]: [tokens, out].
∇Z←X BY NAME
 Z←X+.×⍉WEIGHT NAME
∇

⍝ RMSNorm of the rows of X with the weight NAME.
∇Z←X NORM NAME
 Z←X PER (RMS_NORM_EPS+(+/X×X)÷¯1↑⍴X)*0.5
 Z←Z×(⍴X)⍴WEIGHT NAME
∇

⍝ Each row of the matrix X divided by its number of V.
∇Z←X PER V
 Z←X÷⍉(⌽⍴X)⍴V
∇

⍝ Causal attention of the layer with the names LAYER over the rows of X.
∇Z←LAYER ATTEND X;N;Q;K;V;H;KV;SEEN;S;COSINES;SINES
 N←1↑⍴X
 Q←(N,NUM_HEADS,HEAD_DIM)⍴X BY LAYER,'self_attn.q_proj.weight'
 K←(N,KV_GROUPS,HEAD_DIM)⍴X BY LAYER,'self_attn.k_proj.weight'
 V←(N,KV_GROUPS,HEAD_DIM)⍴X BY LAYER,'self_attn.v_proj.weight'
 S←(¯1+⍳N)∘.×FREQUENCIES N
 COSINES←ROPE_FACTOR×2○S
 SINES←ROPE_FACTOR×1○S
 Q←TURN Q
 K←TURN K
 SEEN←(⍳N)∘.≥⍳N
 Z←(N,NUM_HEADS,HEAD_DIM)⍴0
 H←0
NEXT:→(NUM_HEADS<H←H+1)/DONE
 KV←⌈H×KV_GROUPS÷NUM_HEADS
 S←(Q[;H;]+.×⍉K[;KV;])÷HEAD_DIM*0.5
 S←(S×SEEN)-1E9×~SEEN
 S←SEEN×*S-⍉(⌽⍴S)⍴⌈/S
 Z[;H;]←(S PER +/S)+.×V[;KV;]
 →NEXT
DONE:Z←((N,NUM_HEADS×HEAD_DIM)⍴Z) BY LAYER,'self_attn.o_proj.weight'
∇

⍝ Radians per position of each pair of a head, for sequences of N tokens.
∇Z←FREQUENCIES N
 Z←ROPE_FREQUENCIES
 →(2≠⎕NC 'ROPE_LONG_FREQUENCIES')/0
 →(N≤ROPE_LONG_BEYOND)/0
 Z←ROPE_LONG_FREQUENCIES
∇

⍝ Rotary embedding of X [tokens, heads, head_dim] by the COSINES and SINES [tokens, head_dim / 2] of the caller: element I of a
⍝ head turns together with element I + head_dim / 2.
∇Z←TURN X;LOW;HIGH;C;S
 LOW←X[;;⍳HEAD_DIM÷2]
 HIGH←X[;;(HEAD_DIM÷2)+⍳HEAD_DIM÷2]
 C←2 1 3⍉(⍴X)[2 1 3]{(⍺÷1 1 2)⍴⍵}COSINES
 S←2 1 3⍉(⍴X)[2 1 3]{(⍺÷1 1 2)⍴⍵}SINES
 Z←((LOW×C)-HIGH×S),(HIGH×C)+LOW×S
∇

⍝ SwiGLU of the layer with the names LAYER. The exponential is of numbers below 0 only, so that it cannot overflow.
∇Z←LAYER FEED X;G;E
 G←X BY LAYER,'mlp.gate_proj.weight'
 E←*-|G
 G←G×((G≥0)+(G<0)×E)÷1+E
 Z←(G×X BY LAYER,'mlp.up_proj.weight') BY LAYER,'mlp.down_proj.weight'
∇

⍝ The weight NAME: a matrix [out, in], or a vector. Codes come first: beside them there may be a dequantized copy.
∇Z←WEIGHT NAME;V
 V←SAFE NAME
 →(2=⎕NC V,'_packed')/SIGNS
 →(2=⎕NC V,'_q')/INTEGERS
 →(2=⎕NC V,'_fp32')/FULL
 ⎕ES 'there is no weight ',NAME
SIGNS:Z←UNPACK V
 →0
INTEGERS:Z←(⍎V,'_shape')⍴NPY ⍎V,'_q'
 Z←Z-⍉(⌽⍴Z)⍴WHOLE NPY ⍎V,'_q_zero_point'
 Z←Z×⍉(⌽⍴Z)⍴FLOATS NPY ⍎V,'_q_scales'
 →0
FULL:Z←FLOATS NPY ⍎V,'_fp32'
 →(2≠⎕NC V,'_shape')/0
 Z←(⍎V,'_shape')⍴Z
∇

⍝ A matrix of signs: a bit each, the most significant of a byte first, rows padded to whole bytes; 1 is +1 and 0 is -1.
∇Z←UNPACK V;SHAPE;STRIDE
 SHAPE←⍎V,'_shape'
 STRIDE←⌈SHAPE[2]÷8
 Z←(SHAPE[1],8×STRIDE)⍴⍉(8⍴2)⊤BYTES ⍎V,'_packed'
 Z←¯1+2×SHAPE↑Z
 Z←Z×⍉(⌽⍴Z)⍴NUMBERS ⍎V,'_scales_txt'
∇

⍝ The variable's name for a weight: letters and digits as they are, _ for all else.
∇Z←SAFE NAME
 Z←NAME
 Z[(~Z∊'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz')/⍳⍴Z]←'_'
∇

⍝ The bytes of a file of the folder.
∇Z←BYTES FILE
 Z←⎕FIO[26] FOLDER,'/',FILE
 →(0<⍴⍴Z)/READ
 ⎕ES FOLDER,'/',FILE,': cannot be read'
READ:Z←256|⎕UCS Z
∇

⍝ The bytes of the elements of a NumPy file, behind its header.
∇Z←NPY FILE
 Z←BYTES FILE
 →(1=Z[7])/SHORT
 Z←(12+256⊥⌽Z[8+⍳4])↓Z
 →0
SHORT:Z←(10+256⊥⌽Z[8+⍳2])↓Z
∇

⍝ Unsigned numbers out of groups of four bytes, the least significant first.
∇Z←WORDS B
 B←(((⍴B)÷4),4)⍴B
 Z←B[;1]+256×B[;2]+256×B[;3]+256×B[;4]
∇

⍝ The same, signed.
∇Z←WHOLE B
 Z←WORDS B
 Z←Z-(2*32)×Z≥2*31
∇

⍝ IEEE single precision: sign, 8 bits of exponent, 23 bits of mantissa.
∇Z←FLOATS B;E
 Z←WORDS B
 E←256|⌊Z÷2*23
 Z←(1-2×Z≥2*31)×((E≠0)+((2*23)|Z)÷2*23)×2*(E⌈1)-127
∇

⍝ The numbers of a text file, one a line.
∇Z←NUMBERS FILE
 Z←⎕UCS BYTES FILE
 Z[(Z='-')/⍳⍴Z]←'¯'
 Z[(Z=⎕UCS 10)/⍳⍴Z]←' '
 Z←,⍎Z
∇
